"""How figures and charts look: an optimizer's colour, marker and line, a metric's name, panels and axes."""

from __future__ import annotations

import colorsys
import contextlib
import functools
import re

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ncutils.optimizers import OPTIMIZERS

# Coupled decay is blue, solid, with full markers; decoupled decay orange, dashed, with hollow ones; a shade and a
# marker a rule. Each has a contrast of 3 or more on white, and so on a dark page (`in_dark`).
COLOURS = dict(zip(OPTIMIZERS, ["#08306b", "#8c3a00", "#2171b5", "#d95f0e", "#4f94cd", "#c77d1a"]))
MARKERS = dict(zip(OPTIMIZERS, "ooss^^"))
for marks in (COLOURS, MARKERS):
    marks |= {"SignGD": marks["Signum"], "SignGDW": marks["SignumW"]}
STYLES = {name: "--" if name.endswith("W") else "-" for name in COLOURS}

# of up to ten classes, the same in pictures and explorers (widgets/geometry.js)
CLASSES = ["#0173b2", "#b87503", "#02855f", "#d55e00", "#b35fa3"]
CLASSES += ["#8c564b", "#2f8fc4", "#7a7a7a", "#8a8200", "#7d6bd6"]

METRICS = ["nc0", "nc1", "nc2", "nc3"]  # what most figures and tables show
# a column's name for readers
_METRICS = ("NC0", "NC1", "NC2", "NC2n", "NC2a", "NC2W", "NC2Wn", "NC2Wa", "NC2M", "NC3", "NC4")
LABELS = {name.lower(): name for name in _METRICS}
LABELS |= {f"{c}c": f"centred {LABELS[c]}" for c in ("nc2w", "nc2wn", "nc2wa", "nc2m", "nc3")}
LABELS |= {"gauge_share": "gauge share", "off_span_share": "off-span share", "in_span_share": "in-span share"}
LABELS |= {"nc4_test": "NC4 (test)", "train_acc": "training accuracy", "test_acc": "test accuracy"}


def set_style() -> None:
    """The book's look; figures are SVG: sharp, small, searchable."""
    plt.style.use("seaborn-v0_8-whitegrid")
    plt.rc("font", family="DejaVu Sans", size=10)
    plt.rc("axes", titlesize=11, labelsize=10)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("svg", fonttype="none")
    plt.rc("savefig", bbox="tight")
    with contextlib.suppress(ImportError):  # outside a notebook there is no inline backend
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


DARK = "#121212"  # the ground of the theme's dark pages
# black and white on a coloured cell, which stay what they are on a dark page
ON_COLOUR = "#010101", "#fefefe"


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb: (L1 + 0.05) / (L2 + 0.05) of their relative luminances, 1 to 21 (WCAG 2)."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@functools.cache
def in_dark(colour: str) -> str:
    """The colour of the same hue that stands out from a dark page as this one does from a white one, or white."""
    wanted, black = contrast(colour, "#ffffff"), contrast(DARK, "#000000")
    hue, _, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    low, high, found = 0.0, 1.0, "#ffffff"
    for _ in range(12):
        middle = (low + high) / 2
        rgb = colorsys.hls_to_rgb(hue, middle, saturation)
        found = "#" + "".join(f"{round(255 * c):02x}" for c in rgb)
        # lighter than the ground, too
        enough = contrast(found, DARK) >= wanted and contrast(found, "#000000") > black
        low, high = (low, middle) if enough else (middle, high)
    return found


def turning(colour: str) -> str:
    """A colour #rrggbb in CSS that turns with the page's: white is its ground, what stands `ON_COLOUR` stays."""
    if colour == "#ffffff":
        return "var(--pst-color-background, #ffffff)"
    return colour if colour in ON_COLOUR else f"light-dark({colour}, {in_dark(colour)})"


def in_page(svg: str) -> str:
    """An SVG whose colours turn with the page's, light or dark; elsewhere it is as it was."""
    # what has no colour of its own is black
    svg = svg.replace("<svg ", '<svg style="fill: #000000" ', 1)
    return re.sub(r": (#[0-9a-f]{6})\b", lambda match: f": {turning(match[1])}", svg)


def look(label: str) -> dict:
    """Colour, line style and marker by the optimizer's name, the label's first word; a plain grey line for other names."""
    name = label.split(" ")[0]
    marker = {"marker": MARKERS.get(name, ""), "ms": 4} | ({"mfc": "white"} if name.endswith("W") else {})
    return {"color": COLOURS.get(name, "grey"), "ls": STYLES.get(name, "-"), "label": label} | marker


def looks(labels) -> dict[str, dict]:
    """`look` of each label; where several share an optimizer, a colour and a marker for each label instead."""
    if len({label.split(" ")[0] for label in labels}) == len(labels):
        return {label: look(label) for label in labels}
    marks = zip(labels, sequence(len(labels)), "os^vDPX*" * len(labels))
    return {label: {"label": label, "color": colour, "marker": m, "ms": 4} for label, colour, m in marks}


def sequence(n: int) -> list:
    """N colours of an ordered quantity, dark to light, each of a contrast of 3 or more on white."""
    return list(plt.get_cmap("viridis")(np.linspace(0, 0.59, n)))


def panels(n: int, across: int | None = None) -> tuple[plt.Figure, list[plt.Axes]]:
    """Two panels a row, or one or three in the only one, of a size whose text stays readable at the width of a page."""
    columns = across or (3 if n == 3 else min(n, 2))
    width, rows = {1: 6, 3: 3.2}.get(columns, 4), -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, 2.9 * rows), squeeze=False)
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, list(axes.flat[:n])


def log_scale(axis: plt.Axes) -> None:
    """A logarithmic y axis with few, plain tick labels: powers of ten, 2 and 5 times them on a short axis, and round numbers on
    one so short that it may hold a single one of these."""
    axis.set_yscale("log")
    # a network that decayed to zero would hide the others
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-7))
    low, high = axis.get_ylim()
    short = high < 100 * low
    by_ratio = LogLocator(subs=(1, 2, 5) if short else (1,), numticks=8)
    axis.yaxis.set_major_locator(MaxNLocator(5) if high < 5 * low else by_ratio)
    axis.yaxis.set_minor_locator(NullLocator())
    if short or low >= 1e-3:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def name_lines(axis: plt.Axes, gap: float = 0.06) -> None:
    """Names each line at its right end, to which a leader in its colour goes. Names that would lie on each other are moved apart, each as little as may
    be: least squares under an order. Limits and scale must be the final ones; `gap` is a share of the axis' height."""
    from sklearn.isotonic import isotonic_regression  # a second of import

    low, high = axis.get_ylim()
    ends = []
    for line in axis.lines:
        x, y = (np.asarray(values, float) for values in line.get_data())
        known = np.flatnonzero(np.isfinite(y))
        if not line.get_label().startswith("_") and len(known):
            ends.append((np.clip(y[known[-1]], low, high), x[known[-1]], line))
    if not ends:
        return
    ends.sort(key=lambda end: end[0])
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = [to_axes.transform((x, y))[1] for y, x, _ in ends]
    steps = gap * np.arange(len(ends))
    places = isotonic_regression(heights - steps, y_min=0, y_max=max(1 - gap * len(ends), 0)) + steps
    for (y, x, line), place in zip(ends, places):
        colour, alpha = line.get_color(), line.get_alpha()
        leader = {"arrowstyle": "-", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 2, "alpha": alpha}
        at = {"xytext": (1.03, place), "textcoords": axis.transAxes, "va": "center", "fontsize": 9}
        axis.annotate(line.get_label(), (x, y), **at, arrowprops=leader)


def nothing_drawn(axis: plt.Axes) -> bool:
    """Whether an axis has no points; then it says so."""
    empty = not any(len(line.get_xdata()) for line in axis.lines)
    if empty:
        axis.text(0.5, 0.5, "no valid run", ha="center", va="center", transform=axis.transAxes, color="0.35")
    return empty
