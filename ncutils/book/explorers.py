"""Figures with sliders: for any value where a kernel lives, from frames drawn in advance in the built book."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import display

from ncutils.machine import live_front_end


def explorer(draw: Callable[..., plt.Figure], live: bool | None = None, **choices: list) -> widgets.Widget:
    """A figure `draw(**values)` with a slider for each keyword, or a menu where its choices are strings.

    `choices` holds, for each parameter, the values that the built book offers, in order; every combination is drawn
    now, and the browser switches between them without a kernel: each slider's index is linked to the index of a Stack,
    one Stack a parameter, nested. In a live notebook (`live`; None: found out) the sliders run over all values from a
    tenth of the least to ten times the greatest, further ones can be typed, and `draw` answers at once.
    """
    empty = [name for name, values in choices.items() if len(values) < 2]
    if empty or not choices:
        these = empty or "an explorer"
        raise ValueError(f"choices of {these} are not allowed: each parameter needs 2 values or more")
    live = live_front_end() if live is None else live
    return _answering(draw, choices) if live else _prerendered(draw, choices)


def _prerendered(draw, choices) -> widgets.Widget:
    combinations = (dict(zip(choices, values)) for values in itertools.product(*choices.values()))
    frames = [widgets.HTML(_svg(draw(**values)), layout={"overflow": "auto"}) for values in combinations]
    sliders = []
    for name, values in reversed(choices.items()):  # the innermost Stacks first
        slider, n = _slider(name, values, live=False), len(values)
        stacks = [widgets.Stack(frames[i : i + n]) for i in range(0, len(frames), n)]
        for stack in stacks:
            stack.selected_index = slider.index
            widgets.jslink((slider, "index"), (stack, "selected_index"))
        sliders, frames = [slider, *sliders], stacks
    return widgets.VBox([*sliders, *frames])


def _answering(draw, choices) -> widgets.Widget:
    def answer(**values):
        try:
            display(widgets.HTML(_svg(draw(**values))))
        except ValueError as error:
            plt.close()  # what is drawn of it
            print(error)

    sliders = {name: _slider(name, values, live=True) for name, values in choices.items()}
    return widgets.VBox([*sliders.values(), widgets.interactive_output(answer, sliders)])


def _slider(name, values, live: bool) -> widgets.Widget:
    """Strings from a menu, numbers from a slider: over the choices alone, or live: whole numbers from 2 up, positive
    numbers on a logarithmic scale, shares (0 among the choices) from 0 to 0.999."""
    if isinstance(values[0], str):
        return widgets.Dropdown(options=values, description=name)
    common = {"value": values[len(values) // 2], "description": name}
    if not live:
        return widgets.SelectionSlider(options=[(f"{v:g}", v) for v in values], **common)
    common["continuous_update"] = False
    if all(isinstance(v, int) for v in values):
        return widgets.IntSlider(min=2, max=10 * max(values), **common)
    if min(values) > 0:
        low, high = math.log10(min(values)) - 1, math.log10(max(values)) + 1
        return widgets.FloatLogSlider(min=low, max=high, step=0.01, readout_format=".3g", **common)
    return widgets.FloatSlider(min=0, max=0.999, step=0.001, readout_format=".3f", **common)


def canvas(**labels) -> tuple[plt.Figure, plt.Axes]:
    """An empty frame of an explorer: fixed margins, so that nothing jumps as a slider moves and drawing is quick."""
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="none")
    figure.subplots_adjust(left=0.13, right=0.98, bottom=0.26, top=0.9)
    axis.set(**labels)
    return figure, axis


def legend(axis: plt.Axes) -> None:
    """Under the axis, where no curve runs through it."""
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    axis.legend(**below, ncols=5, frameon=False, fontsize=9, columnspacing=1.2)


def _svg(figure: plt.Figure) -> str:
    """The figure as a small piece of SVG: text as text, a tenth of a point as the finest coordinate."""
    text = io.StringIO()
    # what has no layout engine has margins of its own, which stay as they are from frame to frame (`canvas`)
    box = "tight" if figure.get_layout_engine() else None
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ncutils", "savefig.bbox": box}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    plt.close(figure)
    svg = _HEAD + text.getvalue().partition("<svg")[2]
    svg = _WASTE.sub("", re.sub(r' (d|x|y|points|transform)="[^"]*"', _rounded, svg))
    return re.sub(r"\s*\n\s*", " ", svg)


_HEAD = '<svg style="max-width:100%;height:auto" font-family="DejaVu Sans, sans-serif"'
_WASTE = re.compile(
    r'<g(?: id="\w+_\d+")?/>| id="\w+_\d+"| transform="rotate\(-?0 [^"]*"|; font-family: [^;"]*|; stroke-linecap: round'
    "|<metadata>.*?</metadata>|<!--.*?-->",
    re.DOTALL,
)


def _rounded(geometry: re.Match) -> str:
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), geometry[0])
