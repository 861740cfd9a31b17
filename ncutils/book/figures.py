"""Stored runs -> matplotlib figures. Each carries its profile, data, seeds and run counts."""

from __future__ import annotations

import contextlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ncutils.analysis import Groups, regression, valid
from ncutils.optimizers import OPTIMIZERS
from ncutils.runs import History, decay_budget, exact_law, lr_schedule

# Coupled decay is blue, solid, with full markers; decoupled decay orange, dashed, with hollow ones; a shade and a
# marker a rule.
COLOURS = dict(zip(OPTIMIZERS, ["#08306b", "#8c3a00", "#2171b5", "#d95f0e", "#6aaed6", "#fda34d"]))
MARKERS = dict(zip(OPTIMIZERS, "ooss^^"))
for marks in (COLOURS, MARKERS):
    marks |= {"SignGD": marks["Signum"], "SignGDW": marks["SignumW"]}
_FROM_DECOUPLED_TO_COUPLED = LinearSegmentedColormap.from_list(
    "coupling", [COLOURS["AdamW"], COLOURS["Adam"]]
)
STYLES = {name: "--" if name.endswith("W") else "-" for name in COLOURS}
LABELS = {
    **dict(
        nc0="NC0", nc1="NC1", nc2="NC2", nc2n="NC2n", nc2a="NC2a", nc2w="NC2W", nc2wn="NC2Wn", nc2wa="NC2Wa"
    ),
    **dict(
        nc2m="NC2M", nc3="NC3", nc4="NC4", nc4_test="NC4 (test)", nc2wc="centred NC2W", nc2wnc="centred NC2Wn"
    ),
    **dict(nc2wac="centred NC2Wa", nc2mc="centred NC2M", nc3c="centred NC3", gauge_share="gauge share"),
    **dict(off_span_share="off-span share", in_span_share="in-span share"),
    **dict(train_acc="training accuracy", test_acc="test accuracy"),
}


def set_style() -> None:
    """The book's look; figures are SVG: sharp, small, searchable."""
    plt.style.use("seaborn-v0_8-whitegrid")
    plt.rcParams |= {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
    }
    plt.rcParams |= {"figure.constrained_layout.use": True, "svg.fonttype": "none", "savefig.bbox": "tight"}
    with contextlib.suppress(ImportError):  # outside a notebook there is no inline backend
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


def caption(histories: list[History], profile: str) -> str:
    """What a figure rests on: profile, networks, data, epochs, seeds, how many runs and how many fall to the filter."""
    histories = list({h.run: h for h in histories}.values())  # at wd 0, Adam and AdamW share a run
    runs = [h.run for h in histories]
    seeds = sorted({r.seed for r in runs})
    n = sorted({h.info["n_train"] for h in histories})
    dropped = [h for h in histories if not h.valid]
    diverged = sum(h.diverged for h in dropped)
    text = (
        f"Profile {profile}: {_join(r.arch for r in runs)}, width {_join(r.width for r in runs)}, "
        f"{_join(r.dataset for r in runs)}, {_join(f'{m:,}' for m in n)} training images, "
        f"{_join(r.epochs for r in runs)} epochs, lr {_join(sorted(r.lr for r in runs))}, "
        f"momentum {_join(f'{m:g}' for m in sorted(r.momentum for r in runs))}. {_count(seeds, 'Seed')} {_join(seeds)}. "
        f"{len(runs)} {_count(runs, 'run')}"
    )
    least = f"{_join(f'{h.least_accuracy:.0%}'.replace('%', ' %') for h in histories)} training accuracy"
    if not dropped:
        return text + f", none dropped (all reach {least})."
    reasons = f"{len(dropped) - diverged} under {least}, {diverged} diverged"
    return (
        text
        + f", {len(dropped)} of them {'fails' if len(dropped) == 1 else 'fail'} the paper's filter ({reasons})."
    )


def training_curves(
    groups: Groups, profile: str, columns=("nc0", "nc1", "nc2", "nc3"), laws: dict | None = None
):
    """Metrics over the epochs, one panel a column: mean and one standard deviation over seeds.

    Runs that fail the filter are drawn faint. `laws`: label -> (epochs, values), drawn as dots in NC0's panel.
    """
    figure, axes = _panels(len(columns))
    looks = _looks(groups)
    for axis, column in zip(axes, columns):
        for label, histories in groups.items():
            _mean_and_spread(
                axis, _curves(histories, column), **looks[label], **_faint(histories), markevery=1 / 6
            )
        if column == "nc0":
            for i, points in enumerate((laws or {}).values()):
                label = None if i else "closed form"
                axis.plot(*points, ".", ms=4, color="black", mfc="none", zorder=5, label=label)
        axis.set(xlabel="epoch", title=LABELS.get(column, column))
        log_scale(axis)
        _mark_lr_drops(axis, groups)
    _finish(figure, groups, profile)
    return figure


def singular_value_curves(groups: Groups, profile: str):
    """Figures 6 and 16: the smallest singular value of W, the mean of its others, and that of M's.

    M is centred, so that its smallest singular value is 0 for every optimizer and has no place on a logarithmic axis.
    """
    titles = {
        "w_sv_min": "smallest of $W$",
        "w_sv_mean": "mean of the others of $W$",
        "m_sv_mean": "mean, of $M$",
    }
    figure, axes = _panels(len(titles), across=2)
    for axis, (column, title) in zip(axes, titles.items()):
        for label, histories in groups.items():
            look = _look(label) | {"markevery": 1 / 6} | _faint(histories)
            axis.plot(_curves(histories, column).groupby(level=0).mean(), **look)
        axis.set(xlabel="epoch", title=title)
        log_scale(axis)
        _mark_lr_drops(axis, groups)
    _finish(figure, groups, profile)
    return figure


def decay_sweep(groups: Groups, profile: str, columns=("nc0", "nc3"), budget: bool = False):
    """Figures 1, 3, 13, 15, 17 to 20 and the like: final metrics over weight decay, or over the decay budget
    (`training.decay_budget`): mean and one standard deviation over the valid runs of each.

    Learning rates give many budgets: those within half a decade are taken together.
    """
    figure, axes = _panels(len(columns))
    for axis, column in zip(axes, columns):
        decays = []
        for label, histories in groups.items():
            kept = [h for h in histories if h.valid]
            x = np.array([_half_decade(decay_budget(h)) if budget else h.run.wd for h in kept], dtype=float)
            _mean_and_spread(axis, pd.Series([h.final[column] for h in kept], x, dtype=float), **_look(label))
            decays += [d for d in x if d > 0]
        axis.set(xlabel="decay budget, wd × sum of lr" if budget else "weight decay")
        axis.set(title=LABELS[column] if column.endswith("_acc") else f"final {LABELS[column]}")
        if _empty(axis):
            continue
        if not column.endswith("_acc"):
            log_scale(axis)
        axis.set_xscale("symlog", linthresh=min(decays, default=1e-3))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(0, 1.5 * max(decays, default=1))
    _finish(figure, groups, profile)
    return figure


def _half_decade(value: float) -> float:
    return 10 ** (round(2 * np.log10(value)) / 2) if value > 0 else 0.0


def interpolation(steps: dict[float, list[History]], profile: str, columns=("nc0", "nc1", "nc2", "nc3")):
    """Figure 7: final metrics and accuracies against the coupled part of a fixed total decay, from AdamW to Adam.

    `steps` maps the coupled share to its runs, one a seed: mean and one standard deviation of the valid ones.
    """
    figure, axes = _panels(len(columns) + 2)
    for axis, column in zip(axes, (*columns, "train_acc", "test_acc")):
        points = [
            (share, h.final[column]) for share, histories in steps.items() for h in histories if h.valid
        ]
        shares, values = np.array(points, dtype=float).reshape(-1, 2).T
        mean = _mean_and_spread(axis, pd.Series(values, shares), color="0.3", lw=1, zorder=1)
        axis.scatter(
            mean.index, mean, c=mean.index, cmap=_FROM_DECOUPLED_TO_COUPLED, vmin=0, vmax=1, zorder=2
        )
        axis.set(xlabel="coupled share of the decay", title=f"final {LABELS[column]}")
        if not _empty(axis) and not column.endswith("_acc"):
            log_scale(axis)
    for name in ("AdamW", "Adam"):
        axes[0].plot([], [], "o", color=COLOURS[name], label=name)
    _finish(figure, steps, profile)
    return figure


def _mean_and_spread(axis, values: pd.Series, **look) -> pd.Series:
    """Draws and returns the mean of the values at each index, in a band of one standard deviation, cut off at a tenth of
    the mean, since a logarithmic axis has no zero."""
    stats = values.groupby(level=0).agg(["mean", "std"])
    mean, spread = stats["mean"], stats["std"].fillna(0)
    axis.plot(mean.index, mean, **look)
    axis.fill_between(
        mean.index,
        np.maximum(mean - spread, 0.1 * mean),
        mean + spread,
        color=look["color"],
        alpha=0.15,
        lw=0,
    )
    return mean


def heat_maps(histories: list[History], profile: str, columns=("nc0", "nc2", "nc3")):
    """Figure 4: final metrics over momentum (down) and weight decay (across), mean over the runs of each cell.

    A cell whose runs all fail the filter is hatched, its value grey: shown, not counted.
    """
    figure, axes = _panels(len(columns), across=2)
    for axis, column in zip(axes, columns):
        rows = [(h.run.momentum, h.run.wd, h.valid, h.final[column]) for h in histories]
        table = pd.DataFrame(rows, columns=["momentum", "wd", "valid", column])
        cells = table.pivot_table(index="momentum", columns="wd", values=column, aggfunc="mean")
        kept = table[table["valid"]].pivot_table(
            index="momentum", columns="wd", values=column, aggfunc="mean"
        )
        kept = kept.reindex(index=cells.index, columns=cells.columns)
        image = axis.imshow(np.log10(kept.clip(lower=1e-7)), cmap="viridis", aspect="auto", origin="lower")
        dark = image.norm.vmin + 0.55 * (image.norm.vmax - image.norm.vmin)
        for i, momentum in enumerate(cells.index):
            for j, wd in enumerate(cells.columns):
                value, valid_value = cells.loc[momentum, wd], kept.loc[momentum, wd]
                if np.isnan(valid_value):
                    axis.add_patch(
                        plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", ec="0.8", lw=0)
                    )
                colour = (
                    "0.45" if np.isnan(valid_value) else "black" if np.log10(valid_value) > dark else "white"
                )
                text = f"{value:.2g}" if np.isfinite(value) else "–"
                axis.text(j, i, text.replace("e-0", "e-"), ha="center", va="center", fontsize=8, color=colour)
        axis.set(title=f"final {LABELS[column]}", xlabel="weight decay", ylabel="momentum")
        axis.set_xticks(range(len(cells.columns)), [f"{wd:g}" for wd in cells.columns], fontsize=8)
        axis.set_yticks(range(len(cells.index)), [f"{momentum:g}" for momentum in cells.index], fontsize=8)
        axis.grid(visible=False)
    caption_below(figure, histories, profile)
    return figure


def scatter(
    groups: Groups,
    profile: str,
    columns=("nc1", "nc2", "nc3"),
    x: str = "nc0",
    by_lr: bool = False,
    fit: bool = False,
):
    """Figures 2, 9 to 12, 21 to 23 and the like: final metrics of valid runs against NC0, one panel a column, or with
    `by_lr` one a learning rate. `fit` adds the regression on log10 NC0 (`analysis.regression`)."""
    runs = valid(groups)
    rates = sorted({h.run.lr for h in runs})
    panels = [(column, lr) for column in columns for lr in (rates if by_lr else [None])]
    figure, axes = _panels(len(panels))
    for axis, (column, lr) in zip(axes, panels):
        for label, histories in groups.items():
            points = [(h.final[x], h.final[column]) for h in histories if h.valid and lr in (None, h.run.lr)]
            axis.plot(
                *np.array(points, dtype=float).reshape(-1, 2).T, **_look(label) | {"ls": "", "alpha": 0.8}
            )
        axis.set(xlabel=LABELS[x], ylabel=LABELS[column], title="" if lr is None else f"learning rate {lr:g}")
        if _empty(axis):
            continue
        if column == "nc1":
            log_scale(axis)
        if x == "nc0":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(numticks=5))
            axis.xaxis.set_minor_locator(NullLocator())
        if fit:
            row = regression([h for h in runs if lr in (None, h.run.lr)], column)
            if len(row):
                line, ends = row.iloc[-1], np.array(axis.get_xlim())
                axis.plot(ends, line["intercept"] + line["beta"] * np.log10(ends), color="black", lw=1)
                axis.set_xlim(ends)
                axis.set_title(f"{axis.get_title()}  slope {line['beta']:.3f}, R² {line['r2']:.2f}".strip())
    _finish(figure, groups, profile)
    return figure


def law_figure(histories: list[History], profile: str):
    """NC0 of SGD or SGDW relative to its start, one colour a run: the exact law (line), trained
    networks (dots)."""
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    varied = [f for f in ("momentum", "wd") if len({getattr(h.run, f) for h in histories}) > 1] or [
        "momentum"
    ]
    for history, colour in zip(histories, sequence(len(histories))):
        steps, nc0 = history.frame["step"], history.frame["nc0"]
        axis.plot(exact_law(history), color=colour, lw=1.2)
        label = ", ".join(f"{name} {getattr(history.run, name):g}" for name in varied)
        axis.plot(steps, nc0 / nc0.iloc[0], "o", ms=3, color=colour, label=label)
    axis.set(xlabel="step", ylabel="NC0 / initial NC0")
    log_scale(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    caption_below(figure, histories, profile)
    return figure


def sequence(n: int) -> list:
    """N colours of an ordered quantity, dark to light."""
    return list(plt.get_cmap("viridis")(np.linspace(0, 0.85, n)))


def _panels(n: int, across: int | None = None):
    """Two panels a row, or one or three in the only one, of a size whose text stays readable at the width of a page."""
    columns = across or (3 if n == 3 else min(n, 2))
    width, rows = {1: 6, 3: 3.2}.get(columns, 4), -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, 2.9 * rows), squeeze=False)
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, list(axes.flat[:n])


def _empty(axis) -> bool:
    """Whether nothing is drawn; then the axis says so."""
    empty = not any(len(line.get_xdata()) for line in axis.lines)
    if empty:
        axis.text(0.5, 0.5, "no valid run", ha="center", va="center", transform=axis.transAxes, color="0.35")
    return empty


def log_scale(axis) -> None:
    """A logarithmic y axis with few, plain tick labels: powers of ten, and 2 and 5 times them on a short axis."""
    axis.set_yscale("log")
    axis.set_ylim(
        bottom=max(axis.get_ylim()[0], 1e-7)
    )  # a network that decayed to zero would hide the others
    low, high = axis.get_ylim()
    short = high < 100 * low
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=8))
    axis.yaxis.set_minor_locator(NullLocator())
    if short or low >= 1e-3:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _curves(histories: list[History], column: str) -> pd.Series:
    """The values of all runs by epoch."""
    kept = [h for h in histories if not h.diverged] or histories[:1]  # no mean over curves that break off
    return pd.concat([h.frame.set_index("epoch")[column] for h in kept])


def _faint(histories: list[History]) -> dict:
    return {"alpha": 1.0 if all(h.valid for h in histories) else 0.35}


def _look(label: str) -> dict:
    """Colour, line style and marker by the optimizer's name, the label's first word."""
    name = label.split(" ")[0]
    hollow = {"mfc": "white"} if name.endswith("W") else {}
    marker = {"marker": MARKERS.get(name, ""), "ms": 4} | hollow
    return {"color": COLOURS.get(name, "grey"), "ls": STYLES.get(name, "-"), "label": label} | marker


def _looks(groups: Groups) -> dict[str, dict]:
    """`_look` of each label; where several labels share an optimizer, a colour and a marker for each label instead."""
    if len({label.split(" ")[0] for label in groups}) == len(groups):
        return {label: _look(label) for label in groups}
    marks = zip(groups, sequence(len(groups)), "os^vDPX*" * len(groups))
    return {
        label: {"color": colour, "marker": marker, "ms": 4, "label": label} for label, colour, marker in marks
    }


def _mark_lr_drops(axis, groups: Groups) -> None:
    first = next(iter(groups.values()))[0].run
    drops = np.flatnonzero(np.diff(lr_schedule(first))) + 1 if first.schedule == "step" else []
    for epoch in drops:
        axis.axvline(epoch, color="grey", lw=0.7, ls=":", zorder=0)


def _finish(figure, groups: Groups, profile: str) -> None:
    """Legend of the first panel's lines on top, caption underneath."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = len(handles) if len(handles) <= 4 else -(-len(handles) // 2)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    caption_below(figure, [h for histories in groups.values() for h in histories], profile)


def caption_below(figure, histories: list[History], profile: str) -> None:
    figure.text(
        0.5, -0.02, caption(histories, profile), ha="center", va="top", fontsize=8, color="0.35", wrap=True
    )


def _count(things, noun: str) -> str:
    return noun if len(things) == 1 else noun + "s"


def _join(values) -> str:
    return ", ".join(str(v) for v in dict.fromkeys(values))


def draw_geometry(axis, features, labels, weights) -> None:
    """Features (points), their class means (discs) and the rows of W (arrows) of K classes in R^2 or R^3."""
    features, labels, weights = (np.asarray(a) for a in (features, labels, weights))
    means = np.stack([features[labels == k].mean(0) for k in range(len(weights))])
    centre = means.mean(0)
    features, means = features - centre, means - centre
    weights = weights * np.linalg.norm(means) / np.linalg.norm(weights)
    for k, colour in enumerate(["#0173b2", "#de8f05", "#029e73", "#d55e00"][: len(weights)]):
        axis.scatter(*features[labels == k].T, s=10, color=colour, alpha=0.5, lw=0)
        axis.scatter(*means[k], s=70, color=colour, edgecolor="black", lw=0.8, zorder=3)
        if features.shape[1] == 3:
            axis.quiver(0, 0, 0, *weights[k], color=colour, lw=1.8, arrow_length_ratio=0.12)
        else:
            axis.annotate(
                "",
                weights[k],
                (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0},
            )
    reach = 1.15 * max(np.abs(means).max(), np.abs(weights).max(), np.quantile(np.abs(features), 0.995))
    limits = {f"{name}lim": (-reach, reach) for name in "xyz"[: features.shape[1]]}
    axis.set(**limits, **{f"{name}ticks": [] for name in "xyz"[: features.shape[1]]})
    axis.set_aspect("equal")


def polygon(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class means and rows of W in the plane [K, 2] each, from M^T M, W W^T and W M [3, K, K], both of Frobenius norm 1 in
    their own space.

    The symmetric square root of M^T M holds the class means in coordinates that lie closest to the simplex's; W is projected
    onto the span of the means. Of these K - 1 dimensions the plane is the one in which a simplex's corners are a regular
    polygon's. For K = 3 it is the whole span, and distances of the means are exact. Collapse takes means and weights to the
    corners, at radius sqrt(2 / (K (K - 1))).
    """
    of_means, of_weights, of_both = grams.astype(float)
    values, vectors = np.linalg.eigh(of_means)
    kept = values > 1e-6 * values[-1]  # the grams are float32
    root, vectors = np.sqrt(values[kept]), vectors[:, kept]
    angle = 2 * np.pi * np.arange(len(of_means)) / len(of_means)
    plane = np.column_stack([np.sin(angle), np.cos(angle)]) * np.sqrt(2 / len(of_means))
    means = (vectors * root) @ vectors.T @ plane / np.sqrt(values.sum())
    weights = of_both @ (vectors / root) @ vectors.T @ plane / np.sqrt(np.trace(of_weights))
    return means, weights


def gram_figure(history: History, profile: str):
    """Cosines between class means, between weight rows, and between the two: untrained above, trained below."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.8))
    for row, epoch, grams in ((0, 0, history.grams[0]), (1, int(history.final["epoch"]), history.grams[-1])):
        of_means, of_weights, of_both = grams.astype(float)
        m, w = np.sqrt(of_means.diagonal()), np.sqrt(of_weights.diagonal())
        panels = {
            "class means": of_means / np.outer(m, m),
            "weight rows": of_weights / np.outer(w, w),
            "weight rows × class means": of_both / np.outer(w, m),
        }
        for axis, (name, cosines) in zip(axes[row], panels.items()):
            image = axis.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set(title=f"{name}, epoch {epoch}", xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    caption_below(figure, [history], profile)
    return figure
