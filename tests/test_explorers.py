"""Explorers: the frames drawn in advance, their links, and the answers of a live kernel."""

import itertools
import re

import matplotlib
import matplotlib.pyplot as plt
import pytest

matplotlib.use("Agg")

from ncutils.book import explorers


def draw(lr, K):
    figure, axis = explorers.canvas(xlabel="step")
    axis.plot([0, 1], [0, lr * K])
    axis.set_title(f"lr {lr} K {K} product {lr * K:.4f}")
    if K > 100:
        raise ValueError("K = 101 is not allowed")
    return figure


def title(html):
    return re.search(r"lr \S+ K \d+ product [\d.]+", html)[0]


def test_every_combination_is_a_frame_that_the_sliders_lead_to():
    rates, classes = [0.01, 0.123, 1.0], [3, 10]
    box = explorers.explorer(draw, live=False, lr=rates, K=classes)
    lr, k, outer = box.children
    assert (lr.value, k.value) == (rates[1], classes[1])
    for (i, rate), (j, count) in itertools.product(enumerate(rates), enumerate(classes)):
        frame = outer.children[i].children[j].value
        assert (
            title(frame) == f"lr {rate} K {count} product {rate * count:.4f}"
        )  # text is not rounded with the geometry
    assert outer.selected_index == 1 and all(inner.selected_index == 1 for inner in outer.children)
    frame = outer.children[0].children[0].value
    assert frame.startswith("<svg") and len(frame) < 10_000


def test_a_live_kernel_answers_any_value(capsys):
    before = plt.get_fignums()  # what earlier tests left open
    box = explorers.explorer(draw, live=True, lr=[0.01, 1.0], K=[3, 10])
    lr, k, output = box.children
    lr.value, k.value = 0.5, 7
    assert lr.min <= -3 and k.max == 100
    assert len(output.outputs) == 1 or output.outputs == ()  # without a front end an Output keeps nothing
    k.max = k.value = 101
    assert "K = 101 is not allowed" in capsys.readouterr().out and plt.get_fignums() == before


def test_choices_of_one_are_refused():
    with pytest.raises(
        ValueError, match=r"choices of \['lr'\] are not allowed: each parameter needs 2 values or more"
    ):
        explorers.explorer(draw, live=False, lr=[0.1], K=[3, 10])
