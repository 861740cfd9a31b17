"""Figures that answer in the reader's browser: one widget for a live notebook and for the built book.

Each is an anywidget, whose front end is a JavaScript module of the folder `widgets`. In a notebook Jupyter shows it; the
built page has no kernel, and `static/book.js` calls the same module with the state that the notebook was stored with.
"""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import anywidget
import matplotlib.pyplot as plt
import traitlets
from IPython.display import display

from ncutils.machine import live_front_end

_FOLDER = Path(__file__).with_name("widgets")


def _script(*names: str) -> str:
    """One module out of several files: a page opened from disk may not load one that imports another."""
    return "\n".join((_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("common", *names))


class Explorer(anywidget.AnyWidget):
    """A widget with a trait for each of its controls, which Python may read and set: `widget.wd = 0.1`.

    `controls` are dicts with the keys name, label, value, kind, and by kind: "menu" (of strings) and "stops" (a slider)
    have `options`; "log", "share" (of 1 - value), "count" (whole, logarithmic) and "whole" have min and max and take any
    value between, and 0 where `zero` is set. A value that the control does not allow is refused with traitlets.TraitError.
    `still` is a figure in SVG that stands in the widget's place where JavaScript is off.
    """

    _css = (_FOLDER / "widgets.css").read_text(encoding="utf-8")
    controls = traitlets.List().tag(sync=True)

    def __init__(self, controls: list[dict], still: str = "", **state):
        self.still = still
        self.add_traits(**{c["name"]: _trait(c).tag(sync=True) for c in controls})
        super().__init__(controls=controls, **state)

    def _ipython_display_(self):
        if self.still:
            display({"text/html": f"<noscript>{self.still}</noscript>"}, raw=True)
        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)


def _trait(control: dict) -> traitlets.TraitType:
    start = control["value"]
    if "options" in control:
        return traitlets.Enum(control["options"], start)
    if control["kind"] == "flag":
        return traitlets.Bool(start)
    number = traitlets.Int if control["kind"] in ("whole", "count") else traitlets.Float
    return number(start, min=0 if control["zero"] else control["min"], max=control["max"])


def _number(
    name: str, label: str, value: float, kind: str, low: float, high: float, zero: bool = False
) -> dict:
    return {"name": name, "label": label, "value": value, "kind": kind, "min": low, "max": high, "zero": zero}


class Theory(Explorer):
    """Alpha over the steps by one of the theorems' laws, for any values: what `ncutils.theory` computes, in the browser."""

    _esm = _script("theory")
    law = traitlets.Unicode().tag(sync=True)


def theory(law: str, figure: plt.Figure | None = None, **values: float) -> Theory:
    """The widget of a theorem, at `values` to begin with: lr, wd, momentum and steps of "theorem31"; K, wd, lr and steps of
    "theorem33"; K, wd and lr of "theorem34". `figure` stands in its place where JavaScript is off."""
    of = {
        "lr": _number("lr", "learning rate η", 0.1, "log", 1e-4, 1),
        "wd": _number("wd", "weight decay λ", 0.01, "log", 1e-5, 10),
        "momentum": _number("momentum", "momentum β", 0.9, "share", 0, 0.999),
        "K": _number("K", "classes K", 10, "whole", 2, 100),
        "steps": _number("steps", "steps", 3000, "count", 10, 100_000),
    }
    names = {
        "theorem31": ("lr", "wd", "momentum", "steps"),
        "theorem33": ("K", "wd", "lr", "steps"),
        "theorem34": ("K", "wd", "lr"),
    }
    if unknown := set(values) - set(names[law]):
        raise ValueError(f"{', '.join(unknown)} is not allowed: {law} has {', '.join(names[law])}")
    controls = [of[name] | {"value": values.get(name, of[name]["value"])} for name in names[law]]
    return Theory(controls, _svg(figure) if figure else "", law=law)


class Frames(Explorer):
    """A figure with controls: `frames` drawn in advance, one for each combination, or `svg`, which a live kernel draws."""

    _esm = _script("frames")
    frames = traitlets.List().tag(sync=True)
    svg = traitlets.Unicode().tag(sync=True)


def explorer(draw: Callable[..., plt.Figure], live: bool | None = None, **choices: list) -> Frames:
    """A figure `draw(**values)` with a slider for each keyword, or a menu where its choices are strings.

    `choices` holds, for each parameter, the values that the built book offers, in order; every combination is drawn now.
    In a live notebook (`live`; None: found out) the sliders run over all values from a tenth of the least to ten times
    the greatest, further ones can be typed, and `draw` answers.
    """
    empty = [name for name, values in choices.items() if len(values) < 2]
    if empty or not choices:
        these = empty or "an explorer"
        raise ValueError(f"choices of {these} are not allowed: each parameter needs 2 values or more")
    live = live_front_end() if live is None else live
    controls = [_control(name, values, live) for name, values in choices.items()]
    if not live:
        combinations = (dict(zip(choices, values)) for values in itertools.product(*choices.values()))
        frames = [_svg(draw(**values)) for values in combinations]
        return Frames(controls, frames[0], frames=frames)
    widget = Frames(controls)

    def answer(_=None):
        try:
            widget.svg = _svg(draw(**{name: getattr(widget, name) for name in choices}))
        except ValueError as error:
            plt.close()  # what is drawn of it
            widget.svg = f"<p>{html.escape(str(error))}</p>"

    widget.observe(answer, list(choices))
    answer()
    return widget


def _control(name: str, values: list, live: bool) -> dict:
    """Strings from a menu, numbers from a slider: over the choices alone, or live: whole numbers from 2 up, positive
    numbers on a logarithmic scale, shares (0 among the choices) from 0 to 0.999."""
    start = values[len(values) // 2]
    if isinstance(values[0], str):
        return {"name": name, "label": name, "value": values[0], "kind": "menu", "options": values}
    if not live:
        return {"name": name, "label": name, "value": start, "kind": "stops", "options": values}
    if all(isinstance(v, int) for v in values):
        return _number(name, name, start, "whole", 2, 10 * max(values))
    if min(values) > 0:
        return _number(name, name, start, "log", min(values) / 10, max(values) * 10)
    return _number(name, name, start, "share", 0, 0.999)


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
