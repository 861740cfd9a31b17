"""Explorers: widgets that Python can read and set, the frames drawn in advance, and the answers of a live kernel."""

import dataclasses
import itertools
import json
import re

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from traitlets import TraitError

matplotlib.use("Agg")

from ncutils import analysis, census
from ncutils.book import explorers
from ncutils.training import Run, train


def draw(lr, K):
    figure, axis = explorers.canvas(xlabel="step")
    axis.plot([0, 1], [0, lr * K])
    axis.set_title(f"lr {lr} K {K} product {lr * K:.4f}")
    if K == 99:
        raise ValueError("K = 99 is <not> allowed")
    return figure


# as chapter 23 has it: two rules, one without a leak
LEAKS = pd.DataFrame(
    {"theory": ["breaks", "keeps"], "why": ["divides", "sums"], "why_not": ["", 'no "closure"']}
    | {column: [0.2, np.nan] for column in census.COLUMNS},
    index=["adam", "sgd"],
)


def title(html):
    return re.search(r"lr \S+ K \d+ product [\d.]+", html)[0]


def test_every_combination_is_a_frame_in_the_order_of_the_controls():
    rates, classes = [0.01, 0.123, 1.0], [3, 10]
    widget = explorers.explorer(draw, live=False, lr=rates, K=classes)
    assert (widget.lr, widget.K) == (rates[1], classes[1])
    expected = [f"lr {r} K {k} product {r * k:.4f}" for r, k in itertools.product(rates, classes)]
    assert [title(frame) for frame in widget.frames] == expected  # text is not rounded with the geometry
    assert widget.frames[0].startswith("<svg") and len(widget.frames[0]) < 10_000
    assert title(widget.still) == expected[0]


def test_a_live_kernel_answers_any_value():
    before = plt.get_fignums()  # what earlier tests left open
    widget = explorers.explorer(draw, live=True, lr=[0.01, 1.0], K=[3, 10])
    widget.lr = 0.5
    assert title(widget.svg) == "lr 0.5 K 10 product 5.0000"
    widget.K = 99
    assert widget.svg == "<p>K = 99 is &lt;not&gt; allowed</p>" and plt.get_fignums() == before


@pytest.mark.counts("bad inputs refused")
def test_a_parameter_without_a_value_is_refused():
    with pytest.raises(
        ValueError, match=r"choices of \['lr'\] are not allowed: each parameter needs a value"
    ):
        explorers.explorer(draw, live=False, lr=[], K=[3, 10])


def test_a_single_choice_has_no_control():
    widget = explorers.explorer(draw, live=False, lr=[0.1], K=[3, 10])
    assert [c["name"] for c in widget.controls] == ["K"] and len(widget.frames) == 2
    alone = explorers.explorer(draw, live=False, lr=[0.1], K=[3])
    assert not alone.controls and [title(frame) for frame in alone.frames] == [title(alone.still)]
    assert explorers.explorer(draw, live=True, lr=[0.1], K=[3]).K == 3


def test_every_widget_is_one_of_a_notebook_and_holds_its_module():
    """What nbclient stores of a widget is its state when it opens: the module must be in it."""
    widgets = [explorers.theory(law) for law in ("theorem31", "theorem33", "theorem34")]
    widgets.append(explorers.explorer(draw, live=False, lr=[0.1, 0.2], K=[3, 10]))
    widgets += [explorers.playground(), explorers.census(LEAKS)]
    for widget in widgets:
        state = widget.get_state()
        assert isinstance(widget, ipywidgets.DOMWidget)
        assert "export default {render}" in state["_esm"] and ".nc-widget" in state["_css"]
        assert all(c["name"] in state for c in state["controls"])


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("name", "bad", "good"), [("lr", -1, 0.5), ("wd", 11, 0.1), ("momentum", 1, 0.99), ("steps", 10.5, 10)]
)
def test_a_value_is_set_from_python_and_a_bad_one_refused(name, bad, good):
    widget = explorers.theory("theorem31")
    setattr(widget, name, good)
    with pytest.raises(TraitError, match=f"'{name}' trait"):
        setattr(widget, name, bad)
    assert getattr(widget, name) == good


@pytest.mark.counts("bad inputs refused")
def test_a_law_and_its_values_have_names():
    with pytest.raises(ValueError, match="K is not allowed: theorem31 has lr, wd, momentum, steps"):
        explorers.theory("theorem31", K=3)
    with pytest.raises(ValueError, match="law = 'theorem3' is not allowed: use one of theorem31"):
        explorers.theory("theorem3")


@pytest.mark.counts("bad inputs refused")
def test_a_census_is_set_from_python_and_says_what_it_needs():
    widget = explorers.census(LEAKS)
    widget.search, widget.says, widget.sort, widget.descending = "div", "breaks", "why", True
    for name, bad in (("says", "break"), ("sort", "loss"), ("search", 3), ("descending", "yes")):
        with pytest.raises(TraitError, match=f"'{name}' trait"):
            setattr(widget, name, bad)
    assert (widget.search, widget.says, widget.sort, widget.descending) == ("div", "breaks", "why", True)
    with pytest.raises(ValueError, match="rules has no column k2, why: it needs theory, float64"):
        explorers.census(LEAKS.drop(columns=["why", "k2"]))
    assert widget.rows[1]["rule"] == "sgd" and widget.rows[1]["k2"] is None
    json.dumps(widget.get_state()["rows"], allow_nan=False)  # a browser would refuse the whole page


def test_stored_runs_hold_what_was_measured_and_the_command_that_remakes_them():
    common = {"epochs": 3, "width": 2, "dataset": "digits3", "lr": 0.01}
    groups = {name: [train(Run.named(name, 0.1, **common))] for name in ("Adam", "AdamW")}
    widget = explorers.runs(groups, "test")
    assert [row["optimizer"] for row in widget.runs] == ["Adam", "AdamW"]
    for row, [history] in zip(widget.runs, groups.values()):
        fixed = analysis.gauge_fixed(history)
        for column, expected in (("nc0", history.frame["nc0"]), ("nc3c", fixed["nc3c"])):
            assert row[column] == pytest.approx(expected.tolist(), rel=1e-3)
        assert row["epochs"] == history.frame["epoch"].tolist()
        remade = re.search(r"train\((Run\(.*\))\)\.final", row["command"])[1]
        assert eval(remade) == history.run and '"' not in remade
        # the last layer: distances of three means are exact, and W's part of norm 1 is its centred rows' and the mean row's
        means = [row["means"][-1][2 * k : 2 * k + 2] for k in range(3)]
        gram = history.grams[-1][0] / history.grams[-1][0].trace()
        for k, other in itertools.combinations(range(3), 2):
            square = gram[k, k] + gram[other, other] - 2 * gram[k, other]
            assert np.hypot(*np.subtract(means[k], means[other])) / 1000 == pytest.approx(
                square**0.5, abs=2e-3
            )
    assert len(json.dumps(widget.get_state()["runs"])) < 20_000
    # JSON has neither nan nor infinity, and a browser would refuse the whole page
    undefined = {
        name: [dataclasses.replace(h, frame=h.frame.assign(nc1=np.inf, nc3=np.nan))]
        for name, [h] in groups.items()
    }
    assert "null" in json.dumps(explorers.runs(undefined, "test").runs, allow_nan=False)


def test_a_live_slider_reaches_every_choice():
    for choices in ([0, 1, 10], [0, 2.5, 10], [0.0, 0.5, 0.9], [0.01, 1.0], [1, 3]):
        widget = explorers.explorer(draw, live=True, lr=choices, K=[3, 10])
        for value in choices:
            widget.lr = value
            assert widget.lr == value
