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
import numpy as np
import pandas as pd
import traitlets
from IPython.display import display

from ncutils import analysis
from ncutils.analysis import Groups
from ncutils.book.figures import polygon
from ncutils.book.style import COLOURS, LABELS, in_page
from ncutils.machine import live_front_end
from ncutils.metrics import nc_metrics
from ncutils.optimizers import OPTIMIZERS
from ncutils.runs import History

_FOLDER = Path(__file__).with_name("widgets")


def _script(*names: str) -> str:
    """One module out of several files: a page opened from disk may not load one that imports another."""
    return "\n".join((_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("common", *names))


class Explorer(anywidget.AnyWidget):
    """A widget with a trait for each of its controls, which Python may read and set: `widget.wd = 0.1`.

    `controls` are dicts with the keys name, label, value, kind, and by kind: "text" has no more, "menu" (of strings) and
    "stops" (a slider) have `options`; "log", "share" (of 1 - value), "count" (whole, logarithmic) and "whole" have min and max and take any
    value between, and 0 where `zero` is set. A value that the control does not allow is refused with traitlets.TraitError.
    `still` is a figure, or HTML (a figure in SVG, a table), that stands in the widget's place where JavaScript is off.
    """

    _css = (_FOLDER / "widgets.css").read_text(encoding="utf-8")
    controls = traitlets.List().tag(sync=True)

    def __init__(self, controls: list[dict], still: plt.Figure | str | None = None, **state):
        self.still = _svg(still) if isinstance(still, plt.Figure) else still
        self.add_traits(**{c["name"]: _trait(c).tag(sync=True) for c in controls})
        super().__init__(controls=controls, **state)

    def _ipython_display_(self):
        if self.still:
            page = f'<noscript><div style="overflow-x: auto">{self.still}</div></noscript>'
            display({"text/html": page}, raw=True)
        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)


def _trait(control: dict) -> traitlets.TraitType:
    start = control["value"]
    if "options" in control:
        return traitlets.Enum(control["options"], start)
    if control["kind"] == "text":
        return traitlets.Unicode(start)
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
    if law not in names:
        raise ValueError(f"law = {law!r} is not allowed: use one of {', '.join(names)}")
    if unknown := sorted(set(values) - set(names[law])):
        raise ValueError(f"{', '.join(unknown)} is not allowed: {law} has {', '.join(names[law])}")
    controls = [of[name] | {"value": values.get(name, of[name]["value"])} for name in names[law]]
    return Theory(controls, figure, law=law)


class Gauge(Explorer):
    """A trained network whose NC0 the reader sets, through the length of the mean row of W alone."""

    _esm = _script("gauge")
    gram = traitlets.List(help="W_c W_c^T [K][K]").tag(sync=True)
    cross = traitlets.List(help="W_c u [K], u the direction of the mean row").tag(sync=True)
    nc3c = traitlets.Float(help="centred NC3").tag(sync=True)
    logits = traitlets.List(help="of W_c and b, all images one after the other [N K]").tag(sync=True)
    shift = traitlets.List(help="what an NC0 of 1 adds to all logits of an image [N]").tag(sync=True)
    labels = traitlets.List(help="classes [N]").tag(sync=True)


def gauge(features, labels, weight, bias, figure: plt.Figure | None = None) -> Gauge:
    """The widget of features [N, p] with labels [N], weights W [K, p] and biases [K], NC0 as it is to begin with.

    Logits are rounded to four decimals, so that a page can carry them. `figure` stands in the widget's place where
    JavaScript is off.
    """
    nc0, centred = weight.sum(0).norm(), weight - weight.mean(0)
    direction = weight.mean(0) / weight.mean(0).norm()
    logits, shift = features @ centred.T + bias, features @ direction / len(weight)
    return Gauge(
        [_number("NC0", "NC0", float(f"{nc0:.3g}"), "log", 0.01, 100, zero=True)],
        figure,
        gram=(centred @ centred.T).tolist(),
        cross=(centred @ direction).tolist(),
        nc3c=nc_metrics(features, labels, weight, bias)["nc3c"],
        logits=[round(x, 4) for x in logits.flatten().tolist()],
        shift=[round(x, 4) for x in shift.tolist()],
        labels=labels.tolist(),
    )


class Playground(Explorer):
    """Two networks of 64-32-16-K units, trained on digits where the reader is; `measured` has the end of the last training."""

    _esm = _script("network", "geometry", "playground")
    pixels = traitlets.Unicode().tag(sync=True)
    labels = traitlets.Unicode().tag(sync=True)
    gauge = traitlets.Bool().tag(sync=True)
    measured = traitlets.Dict().tag(sync=True)


def playground(figure: plt.Figure | None = None) -> Playground:
    """The playground on scikit-learn's digits, at its first preset. `figure` stands in its place where JavaScript is off."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    controls = [
        {"name": "classes", "label": "classes", "value": 3, "kind": "menu", "options": [3, 4, 10]},
        _number("batch", "batch size", 128, "count", 8, 512),
        _number("seed", "seed", 0, "whole", 0, 99),
        _number("steps", "steps", 2000, "count", 10, 20_000),
    ]
    for side, optimizer, wd in (("a", "Adam", 0.05), ("b", "AdamW", 5.0)):
        menu = {
            "label": f"{'left' if side == 'a' else 'right'} optimizer",
            "value": optimizer,
            "kind": "menu",
        }
        menu |= {"options": [*OPTIMIZERS, "Muon", "MuonW"]}
        controls += [
            menu | {"name": f"optimizer_{side}"},
            _number(f"lr_{side}", "learning rate", 0.001, "log", 1e-5, 1),
            _number(f"wd_{side}", "weight decay", wd, "log", 1e-5, 20, zero=True),
            _number(f"momentum_{side}", "momentum", 0.9, "share", 0, 0.99),
        ]
    pixels = "".join(chr(ord("a") + int(value)) for value in images.flat)
    return Playground(controls, figure, pixels=pixels, labels="".join(map(str, labels)))


class Runs(Explorer):
    """Stored runs as dots over two metrics, and two of them, chosen by their hash, with curves and geometry."""

    _esm = _script("geometry", "runs")
    runs = traitlets.List().tag(sync=True)
    colours = traitlets.Dict().tag(sync=True)
    key = traitlets.Unicode().tag(sync=True)
    run_a = traitlets.Unicode().tag(sync=True)
    run_b = traitlets.Unicode().tag(sync=True)
    gauge = traitlets.Bool().tag(sync=True)


def runs(groups: Groups, key: str, figure: plt.Figure | None = None) -> Runs:
    """The widget of labelled runs, Adam and AdamW at their smallest NC3 to begin with. `key` names it in the page's address.

    Of more than 100 runs the last layer is kept at every second measured epoch, of more than 400 at every third, so that a
    page can carry them.
    """
    groups = analysis.with_gauge_fixed(groups)
    found = {h.run: h for histories in groups.values() for h in histories}
    every = 1 + (len(found) > 100) + (len(found) > 400)
    rows = {run.hash: _stored(h, every) for run, h in found.items()}
    best = {name: h.run.hash for name, h in analysis.best(groups).items()}
    start = [best.get(name, next(iter(rows))) for name in ("Adam", "AdamW")]
    settings = list(dict.fromkeys(row["setting"] for row in rows.values()))
    menu, over = {"kind": "menu"}, ["nc0", "nc1", "nc2", "nc3", "nc3c", "train_acc", "test_acc"]
    metric = menu | {"options": over, "titles": [LABELS[column] for column in over]}
    controls = [
        menu
        | {"name": "setting", "label": "setting", "value": rows[start[0]]["setting"], "options": settings},
        metric | {"name": "x", "label": "across", "value": "nc0"},
        metric | {"name": "y", "label": "up", "value": "nc3"},
    ]
    both = {"run_a": start[0], "run_b": start[1]}
    return Runs(controls, figure, runs=list(rows.values()), colours=COLOURS, key=key, **both)


def _stored(history: History, every: int) -> dict:
    """A run as the widget shows it: its fields, the metrics over the epochs, its last layer in thousandths, its command."""
    run, frame, k = history.run, history.frame, history.info["n_classes"]
    centre, grams = np.eye(k) - 1 / k, np.nan_to_num(history.grams.astype(float))
    centred = np.stack([grams[:, 0], centre @ grams[:, 1] @ centre, centre @ grams[:, 2]], axis=1)
    with np.errstate(all="ignore"):  # weights crushed to zero have no direction
        places = [np.nan_to_num(np.hstack(polygon(row)).reshape(k, 2, 2)) for row in centred]
    thousandths = [(1000 * np.moveaxis(place, 1, 0)).round().astype(int) for place in places]
    kept = {0, *range(len(places) - 1, -1, -every)}
    layers = [
        [place[which].ravel().tolist() if i in kept else None for i, place in enumerate(thousandths)]
        for which in (0, 1)
    ]
    fields = ", ".join(f"{name}={value!r}" for name, value in run.model_dump(exclude_defaults=True).items())
    columns = ("nc0", "nc1", "nc2", "nc3", "nc3c", "gauge_share", "train_acc", "test_acc")
    row = {name: getattr(run, name) for name in ("hash", "optimizer", "lr", "momentum", "wd", "seed")}
    row |= {c: [float(f"{v:.4g}") if np.isfinite(v) else None for v in frame[c]] for c in columns}
    return row | {
        "setting": f"{run.arch} on {run.dataset}",
        "valid": bool(history.valid),
        "classes": k,
        "epochs": [float(epoch) for epoch in frame["epoch"]],
        "means": layers[0],
        "centred": layers[1],
        "command": f'python -c "from ncutils import Run, train; print(train(Run({fields})).final)"',
    }


class Census(Explorer):
    """What the theorem says of each rule beside its leaks: a table; `shown` names the rules in it, first to last."""

    _esm = _script("census")
    rows = traitlets.List().tag(sync=True)
    descending = traitlets.Bool().tag(sync=True)
    shown = traitlets.List().tag(sync=True)


def census(rules: pd.DataFrame, still: str | None = None) -> Census:
    """The widget of a table of rules, smallest leak first to begin with.

    `rules` has a row a rule, its name as index: the columns of `ncutils.census.COLUMNS` (leaks, nan where there is none),
    theory and why of `theory.row_sums`, and why_not, the reason of a leak that is missing, else "". `still` is the HTML that
    stands in the widget's place where JavaScript is off. Raises ValueError where a column is missing.
    """
    titles = {"rule": "rule", "theory": "theory says"}
    titles |= {"float64": "leak", "float32": "in float32", "k2": "K = 2"}
    titles |= {"label_smoothing": "label smoothing", "squared_error": "squared error", "why": "why"}
    needed = [*list(titles)[1:], "why_not"]
    if missing := [column for column in needed if column not in rules]:
        raise ValueError(f"rules has no column {', '.join(missing)}: it needs {', '.join(needed)}")
    rows = rules[needed].rename_axis("rule").reset_index().astype(object)
    rows = rows.where(rows.notna(), None).to_dict("records")
    found = rules["theory"].value_counts()
    menu = {"kind": "menu"}
    controls = [
        {"name": "search", "label": "search", "value": "", "kind": "text"},
        menu
        | {"name": "says", "label": "theory says", "value": "all", "options": ["all", *found.index]}
        | {"titles": [f"all ({len(rules)})", *(f"{name} ({n})" for name, n in found.items())]},
        menu
        | {"name": "sort", "label": "sort by", "value": "float64", "options": list(titles)}
        | {"titles": list(titles.values())},
    ]
    return Census(controls, still, rows=rows)


class Frames(Explorer):
    """A figure with controls: `frames` drawn in advance, one for each combination, or `svg`, which a live kernel draws."""

    _esm = _script("frames")
    frames = traitlets.List().tag(sync=True)
    svg = traitlets.Unicode().tag(sync=True)


def explorer(draw: Callable[..., plt.Figure], live: bool | None = None, **choices: list) -> Frames:
    """A figure `draw(**values)` with a slider for each keyword, or a menu where its choices are strings.

    `choices` holds, for each parameter, the values that the built book offers, in order; every combination is drawn now. One
    with a single value has no control there.
    In a live notebook (`live`; None: found out) the sliders run over all values from a tenth of the least to ten times
    the greatest, further ones can be typed, and `draw` answers.
    """
    empty = [name for name, values in choices.items() if not values]
    if empty or not choices:
        these = empty or "an explorer"
        raise ValueError(f"choices of {these} are not allowed: each parameter needs a value or more")
    live = live_front_end() if live is None else live
    controls = [_control(name, values, live) for name, values in choices.items() if live or len(values) > 1]
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
    """Strings from a menu, numbers from a slider: over the choices alone, or live: whole numbers from 2 or the
    least choice up, positive numbers, and 0 where it is a choice, on a logarithmic scale, shares (0 among choices under 1) from 0
    to 0.999."""
    start = values[len(values) // 2]
    if isinstance(values[0], str):
        return {"name": name, "label": name, "value": values[0], "kind": "menu", "options": values}
    if not live:
        return {"name": name, "label": name, "value": start, "kind": "stops", "options": values}
    if all(isinstance(v, int) for v in values):
        return _number(name, name, start, "whole", min(2, *values), 10 * max(values))
    if min(values) > 0 or max(values) >= 1:
        least = min(v for v in values if v > 0)
        return _number(name, name, start, "log", least / 10, max(values) * 10, zero=min(values) == 0)
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
    svg = in_page(_HEAD + text.getvalue().partition("<svg")[2])
    svg = svg.replace('style="', 'style="width: 100%; height: auto; ', 1)
    svg = _WASTE.sub("", re.sub(r' (d|x|y|points|transform)="[^"]*"', _rounded, svg))
    return re.sub(r"\s*\n\s*", " ", svg)


_HEAD = '<svg font-family="DejaVu Sans, sans-serif"'
_WASTE = re.compile(
    r'<g(?: id="\w+_\d+")?/>| id="\w+_\d+"| transform="rotate\(-?0 [^"]*"|; font-family: [^;"]*|; stroke-linecap: round'
    "|<metadata>.*?</metadata>|<!--.*?-->",
    re.DOTALL,
)


def _rounded(geometry: re.Match) -> str:
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), geometry[0])
