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
        raise ValueError(
            f"choices of {empty or 'an explorer'} are not allowed: each parameter needs 2 values or more"
        )
    if live_front_end() if live is None else live:
        return _answering(draw, choices)
    return _prerendered(draw, choices)


def _prerendered(draw, choices) -> widgets.Widget:
    sliders = [
        widgets.Dropdown(options=values, description=name)
        if isinstance(values[0], str)
        else widgets.SelectionSlider(
            options=[(f"{v:g}", v) for v in values], description=name, value=values[len(values) // 2]
        )
        for name, values in choices.items()
    ]
    frames = [
        widgets.HTML(_svg(draw(**dict(zip(choices, values)))), layout={"overflow": "auto"})
        for values in itertools.product(*choices.values())
    ]
    for slider, values in reversed(list(zip(sliders, choices.values()))):  # the innermost Stacks first
        n = len(values)
        stacks = [
            widgets.Stack(frames[i : i + n], selected_index=slider.index) for i in range(0, len(frames), n)
        ]
        for stack in stacks:
            widgets.jslink((slider, "index"), (stack, "selected_index"))
        frames = stacks
    return widgets.VBox([*sliders, *frames])


def _answering(draw, choices) -> widgets.Widget:
    sliders, output = {name: _slider(name, values) for name, values in choices.items()}, widgets.Output()

    def answer(change=None):
        output.clear_output(wait=True)
        with output:
            try:
                display(widgets.HTML(_svg(draw(**{name: slider.value for name, slider in sliders.items()}))))
            except ValueError as error:
                print(error)

    for slider in sliders.values():
        slider.observe(answer, "value")
    answer()
    return widgets.VBox([*sliders.values(), output])


def _slider(name, values) -> widgets.Widget:
    """Strings from a menu, whole numbers from 2 up, positive numbers on a logarithmic scale, shares (0 among the choices) from 0 to 0.999."""
    if isinstance(values[0], str):
        return widgets.Dropdown(options=values, description=name)
    common = {"value": values[len(values) // 2], "description": name, "continuous_update": False}
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
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, frameon=False, fontsize=9, columnspacing=1.2
    )


def _svg(figure: plt.Figure) -> str:
    """The figure as a small piece of SVG: text as text, a tenth of a point as the finest coordinate."""
    text = io.StringIO()
    # what has no layout engine has margins of its own, which stay as they are from frame to frame (`canvas`)
    box = "tight" if figure.get_layout_engine() else None
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ncutils", "savefig.bbox": box}):
        figure.savefig(
            text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' (d|x|y|points|transform)="[^"]*"', lambda geometry: _NUMBER.sub(_rounded, geometry[0]), svg
    )
    for waste in (
        r' id="\w+_\d+"',
        r' transform="rotate\(-?0 [^"]*"',
        r"; font-family: [^;\"]*|; stroke-linecap: round",
        r"<g/>",
    ):
        svg = re.sub(waste, "", svg)
    return re.sub(r"\s*\n\s*", " ", svg).replace(
        "<svg", '<svg style="max-width:100%;height:auto" font-family="DejaVu Sans, sans-serif"', 1
    )


_NUMBER = re.compile(r"\d+\.\d{2,}")


def _rounded(number: re.Match) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")
