"""Figures in a page: their captions, the numbers beside them, their colours."""

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from ncutils.book import captions, style
from ncutils.optimizers import OPTIMIZERS


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: data and metadata."""
    found = []

    def display(data, metadata, raw=False):
        found.append((data if raw else {"text/markdown": data.data}, metadata))

    monkeypatch.setattr(captions, "display", display)
    return found


def draw():
    plt.close("all")  # other tests leave theirs open
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([1, 2, 3], [0.5, 0.25, 0.125], color="#2171b5", label="Adam")
    left.scatter([4, 5], [6, 7], label="runs")
    left.axhline(1, color="black")
    left.set_title("NC0")
    right.bar([0, 1], [2.0, 3.0], 1.0, label="shares")
    right.imshow(np.array([[1.0, 2.0]]))
    figure.provenance = "Profile test: 3 runs <none dropped>."


def test_a_caption_tells_name_words_provenance_and_numbers(shown):
    draw()
    captions.caption("Figure 5", "NC0 of *Adam*, see [there](a.md), over $t$.")
    (picture, about), (text, mark) = shown
    assert about["figure"]["name"] == "Figure 5" and mark == {"caption": "Figure 5"} and not plt.get_fignums()
    assert (
        text["text/markdown"].startswith("**Figure 5.** NC0 of *Adam*")
        and "Profile test" in text["text/markdown"]
    )
    rows = list(csv.reader(io.StringIO(about["figure"]["numbers"])))
    assert rows[0] == ["panel", "label", "x", "y"]
    assert [r for r in rows if r[1] == "Adam"] == [
        ["NC0", "Adam", x, y] for x, y in (("1", "0.5"), ("2", "0.25"), ("3", "0.125"))
    ]
    assert [r[2:] for r in rows if r[1] == "runs"] == [["4", "6"], ["5", "7"]]
    assert [r[2:] for r in rows if r[1] == "shares"] == [["0.5", "2"], ["1.5", "3"]]
    assert [r[2:] for r in rows if "row" in r[2]] == [["row 0, column 0", "1"], ["row 0, column 1", "2"]]
    assert len(rows) == 1 + 3 + 2 + 2 + 2  # the rule across the panel is no number
    assert picture["image/svg+xml"].startswith("<svg ")


def test_a_page_holds_a_figure_with_a_label_and_its_caption_once(shown):
    draw()
    captions.caption("Figure 5", "NC0 of *Adam*, see [there](a.md), over $t$.")
    (picture, about), (_, mark) = shown

    class Renderer:
        def render_markdown(self, data):
            return [data.content]

    def handle(mime, content, metadata):
        data = captions_data(mime, content, metadata)
        return captions.Figures.handle_mime(Renderer(), data, False)

    before, text, after = handle("image/svg+xml", picture["image/svg+xml"], about)
    html = before.astext() + text + after.astext()
    assert (
        '<figure class="drawn" id="figure-5"><svg role="img" aria-label="Figure 5. NC0 of Adam, see there, over t."'
        in html
    )
    width = float(re.search(r'width="([\d.]+)pt"', picture["image/svg+xml"])[1])
    assert f'style="min-width: {min(width, 660):.0f}px; fill:' in html  # text of 8 points in 8 pixels
    assert not re.search(r'<svg[^>]* width="', html) and html.count("<figure") == html.count("</figure>") == 1
    assert "&lt;none dropped&gt;" in html and 'download="figure-5.csv"' in html
    (unseen,) = handle("text/markdown", "x", mark)
    assert unseen.tagname == "comment"
    assert handle("image/svg+xml", "<svg/>", {}) is None and handle("text/markdown", "x", {}) is None


def test_a_figure_that_redraws_several_has_a_place_for_each(shown):
    draw()
    captions.caption("Figure 21", "Three in one.", also=("Figure 22", "Figure 23"))
    (picture, about), (text, _) = shown
    assert text["text/markdown"].startswith("**Figure 21, Figure 22, Figure 23.** Three in one.")
    data = captions_data("image/svg+xml", picture["image/svg+xml"], about)
    before, *_ = captions.Figures.handle_mime(SimpleNamespace(render_markdown=lambda _: []), data, False)
    assert re.findall(r' id="(figure-\d+)"', before.astext()) == ["figure-21", "figure-22", "figure-23"]


def captions_data(mime, content, metadata):
    from myst_nb.core.render import MimeData

    return MimeData(mime, content, output_metadata=metadata)


def test_colours_turn_with_the_page():
    svg = '<svg xmlns="x"><path style="stroke: #2171b5; fill: #ffffff"/><text style="fill: #fefefe">1</text></svg>'
    turned = style.in_page(svg)
    assert (
        turned.startswith('<svg style="fill: light-dark(#000000, #')
        and "stroke: light-dark(#2171b5, #" in turned
    )
    assert "var(--pst-color-background, #ffffff)" in turned and 'style="fill: #fefefe"' in turned


SEEN = [style.COLOURS[name] for name in OPTIMIZERS] + [to_hex(c) for n in (3, 6) for c in style.sequence(n)]


@pytest.mark.parametrize("colour", SEEN)
def test_optimizers_and_ordered_quantities_are_seen_on_both_grounds(colour):
    dark = style.in_dark(colour)
    assert style.contrast(colour, "#ffffff") >= 3 and style.contrast(dark, style.DARK) >= 2.9
    # the same hue: red, green and blue in the same order
    order = [np.argsort([int(c[i : i + 2], 16) for i in (1, 3, 5)]).tolist() for c in (colour, dark)]
    assert order[0] == order[1]


@pytest.mark.parametrize("n", [1, 3, 6])
def test_an_ordered_quantity_is_seen_on_both_grounds(n):
    colours = [to_hex(c) for c in style.sequence(n)]
    assert all(style.contrast(c, "#ffffff") >= 2.95 for c in colours)
    assert all(style.contrast(style.in_dark(c), style.DARK) >= 2.9 for c in colours)
    light = [style.contrast(c, "#ffffff") for c in colours]
    assert light == sorted(light, reverse=True) and len(set(colours)) == n


@pytest.mark.parametrize("low", [1.1e-4, 0.055, 0.21, 0.58, 2.1, 30])
@pytest.mark.parametrize("ratio", [1.3, 2.6, 4.9, 5.1, 20, 90, 300, 1e5])
def test_a_logarithmic_axis_has_two_ticks_or_more_and_not_too_many(low, ratio):
    figure, axis = plt.subplots()
    axis.plot([0, 1], [low, low * ratio])
    style.log_scale(axis)
    bottom, top = axis.get_ylim()
    ticks = [tick for tick in axis.yaxis.get_majorticklocs() if bottom <= tick <= top]
    plt.close(figure)
    assert 2 <= len(ticks) <= 10


def test_contrast_is_that_of_the_recommendation():
    """W3C's own examples: black on white 21, #777777 on white 4.48."""
    assert style.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert style.contrast("#ffffff", "#777777") == pytest.approx(4.48, abs=0.005)
    grey = style.in_dark("#777777")
    assert style.contrast(grey, style.DARK) == pytest.approx(4.48, abs=0.1)


@pytest.mark.parametrize(
    "ends", [[1, 2, 3, 4, 5, 6], [1, 1.001, 1, 0.999, 1, 50], [1e-9, 1, 1, 1, 1, 1], [3, 3, 3, 3, 3, 3]]
)
def test_lines_are_named_at_their_ends_in_their_order_and_apart(ends):
    figure, axis = plt.subplots()
    for name, end in zip(OPTIMIZERS, ends):
        axis.plot([0, 1, 2], [1, end, np.nan], label=name, color=style.COLOURS[name])
    style.log_scale(axis)
    style.name_lines(axis)
    plt.close(figure)
    places = [(text.xyann[1], text.get_text()) for text in axis.texts]
    heights = np.array([height for height, _ in places])
    assert {name for _, name in places} == set(OPTIMIZERS)
    assert (np.diff(heights) > 0.0599).all() and heights[0] >= 0 and heights[-1] <= 1
    in_order = [ends[list(OPTIMIZERS).index(name)] for _, name in places]
    assert in_order == sorted(in_order)
    assert all(to_hex(t.arrow_patch.get_edgecolor()) == style.COLOURS[t.get_text()] for t in axis.texts)
    assert all(style.contrast(to_hex(t.get_color()), "#ffffff") >= 4.5 for t in axis.texts)  # as words need
    to_axes = axis.transData + axis.transAxes.inverted()
    if len(set(ends)) == 6 and min(ends) == 1:  # room for all where they end
        assert heights == pytest.approx([min(to_axes.transform((1, y))[1], 0.94) for y in sorted(ends)])


def test_nothing_is_named_where_no_line_has_a_value():
    figure, axis = plt.subplots()
    axis.plot([0, 1], [np.nan, np.nan], label="Adam")
    style.name_lines(axis)
    plt.close(figure)
    assert not axis.texts


def test_classes_have_the_same_colours_in_pictures_and_explorers():
    source = Path(style.__file__).with_name("widgets") / "geometry.js"
    (listed,) = re.findall(r"^const CLASS = (.*)$", source.read_text("utf-8"), re.MULTILINE)
    assert json.loads(listed) == style.CLASSES
    grounds = ("#ffffff", style.DARK)
    assert all(style.contrast(c, ground) >= 3 for c in style.CLASSES for ground in grounds)
