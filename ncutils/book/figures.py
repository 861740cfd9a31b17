"""Stored runs -> matplotlib figures. Each knows its profile, data, seeds and run counts (`provenance`).

Final metrics come from the tidy table (`analysis.table`), curves over the epochs from `History.frame`. The paper's figures
that a function redraws are named where it is defined; looks are those of `style`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ncutils import analysis, store
from ncutils.analysis import Groups
from ncutils.book import style
from ncutils.runs import History, exact_law, lr_schedule

# notebooks find these here
COLOURS, STYLES, LABELS = style.COLOURS, style.STYLES, style.LABELS
set_style, log_scale, sequence = style.set_style, style.log_scale, style.sequence


def provenance(histories: list[History], profile: str | None) -> str:
    """What a figure rests on: profile (None: all stored runs), networks, data, epochs, seeds, how many runs (`analysis.once`)
    and how many fall to the filter."""
    histories = analysis.once(histories)
    runs = store.table(histories)
    n, seeds, dropped = len(runs), sorted(set(runs["seed"])), list(runs["valid"]).count(False)
    text = (
        f"{f'Profile {profile}' if profile else 'All stored runs'}: {_join(runs['arch'])}, width {_join(runs['width'])}, {_join(runs['dataset'])}, "
        f"{_join(sorted(runs['images']), ',')} training images, {_join(runs['epochs'])} epochs, "
        f"lr {_join(sorted(runs['lr']))}, momentum {_join(sorted(runs['momentum']), 'g')}. "
        f"Seed{'s' * (len(seeds) > 1)} {_join(seeds)}. {n} run{'s' * (n > 1)}"
    )
    least = f"{_join(f'{100 * h.least_accuracy:.0f} %' for h in histories)} training accuracy"
    if not dropped:
        return text + f", none dropped (all reach {least})."
    diverged = runs["diverged_epoch"].notna().sum()
    reasons = f"{dropped - diverged} under {least}, {diverged} diverged"
    return text + f", {dropped} of them fail{'s' * (dropped == 1)} the paper's filter ({reasons})."


def rests_on(figure, histories: list[History], profile: str | None) -> None:
    """Keeps a figure's `provenance` with it, for its caption (`captions.caption`)."""
    figure.provenance = provenance(histories, profile)


def training_curves(groups: Groups, profile: str, columns=("nc0", "nc1", "nc2", "nc3"), laws=None):
    """Figures 5, 8 and 14 and the like: metrics over the epochs, one panel a column, mean and one standard deviation over
    seeds. Runs that fail the filter are drawn faint.

    `laws`: label -> (epochs, values), two arrays of one length, drawn as dots in NC0's panel.
    """
    titles = {column: LABELS.get(column, column) for column in columns}
    return _over_epochs(groups, profile, titles, laws=laws or {})


def singular_value_curves(groups: Groups, profile: str):
    """Figures 6 and 16: the smallest singular value of W, the mean of its others, and that of M's.

    M is centred, so that its smallest singular value is 0 for every optimizer and has no place on a logarithmic axis.
    """
    titles = {"w_sv_min": "smallest of $W$", "w_sv_mean": "mean of the others of $W$"}
    titles["m_sv_mean"] = "mean, of $M$"
    return _over_epochs(groups, profile, titles, band=False)


def _over_epochs(groups, profile, titles: dict, band=True, laws=()):
    """A panel a column, with its title, and a line a label."""
    (figure, axes), looks = style.panels(len(titles)), style.looks(groups)
    named = len(groups) > 4 and max(map(len, groups)) <= 9  # at the lines' ends; else in a legend
    for axis, (column, title) in zip(axes, titles.items()):
        for label, histories in groups.items():
            # no mean over curves that break off
            whole = [h for h in histories if not h.diverged] or histories[:1]
            curves = pd.concat([h.frame.set_index("epoch")[column] for h in whole])
            alpha = 1.0 if all(h.valid for h in histories) else 0.55
            _mean_and_spread(axis, curves, band, **looks[label], alpha=alpha, markevery=1 / 6)
        axis.set(xlabel="epoch", title=title)
        log_scale(axis)
        if named:
            style.name_lines(axis)
        for i, law in enumerate(laws if column == "nc0" else ()):
            label = None if i else "closed form"
            axis.plot(*laws[law], ".", ms=4, color="black", mfc="none", zorder=5, label=label)
        first = next(iter(groups.values()))[0].run
        if first.schedule == "step":
            for epoch in np.flatnonzero(np.diff(lr_schedule(first))) + 1:
                axis.axvline(epoch, color="grey", lw=0.7, ls=":", zorder=0)
    return _finished(figure, groups, profile, legend=not named)


def decay_sweep(groups: Groups, profile: str, columns=("nc0", "nc3"), budget: bool = False):
    """Figures 1, 3, 13, 15, 17 to 20 and the like: final metrics over weight decay, or over the decay budget
    (`runs.decay_budget`): mean and one standard deviation over the valid runs of each.

    Learning rates give many budgets: those within half a decade are taken together.
    """
    runs = _valid(groups)
    half_decades = 10 ** ((2 * np.log10(runs["budget"].replace(0, np.nan))).round() / 2)
    runs = runs.assign(x=half_decades.fillna(0) if budget else runs["wd"])
    decays = runs["x"][runs["x"] > 0]
    figure, axes = style.panels(len(columns))
    for axis, column in zip(axes, columns):
        share = column.endswith("_acc")
        for label in groups:
            values = runs[runs["label"] == label].set_index("x")[column]
            _mean_and_spread(axis, values, **style.look(label))
        axis.set(xlabel="decay budget, wd × sum of lr" if budget else "weight decay")
        axis.set(title=LABELS[column] if share else f"final {LABELS[column]}")
        if style.nothing_drawn(axis):
            continue
        if not share:
            log_scale(axis)
        axis.set_xscale("symlog", linthresh=min(decays, default=1e-3))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(0, 1.5 * max(decays, default=1))
    return _finished(figure, groups, profile)


def interpolation(steps: dict[float, list[History]], profile: str, columns=("nc0", "nc1", "nc2", "nc3")):
    """Figure 7: final metrics and accuracies against the coupled part of a fixed total decay, from AdamW to Adam.

    `steps` maps the coupled share to its runs, one a seed: mean and one standard deviation of the valid ones.
    """
    runs, ends = _valid(steps).set_index("label"), ("AdamW", "Adam")
    colours = LinearSegmentedColormap.from_list("coupling", [COLOURS[name] for name in ends])
    figure, axes = style.panels(len(columns) + 2)
    for axis, column in zip(axes, (*columns, "train_acc", "test_acc")):
        mean = _mean_and_spread(axis, runs[column], color="0.3", lw=1, zorder=1)
        axis.scatter(mean.index, mean, c=mean.index, cmap=colours, vmin=0, vmax=1, zorder=2)
        axis.set(xlabel="coupled share of the decay", title=f"final {LABELS[column]}")
        if not style.nothing_drawn(axis) and not column.endswith("_acc"):
            log_scale(axis)
    for name in ends:
        axes[0].plot([], [], "o", color=COLOURS[name], label=name)
    return _finished(figure, steps, profile)


def heat_maps(histories: list[History], profile: str, columns=("nc0", "nc2", "nc3")):
    """Figure 4: final metrics over momentum (upwards) and weight decay (to the right), mean over the runs of each cell.

    A cell whose runs all fail the filter is hatched, its value grey: shown, not counted.
    """
    runs = store.table(histories)
    figure, axes = style.panels(len(columns), across=2)
    for axis, column in zip(axes, columns):
        cells = runs.pivot_table(column, "momentum", "wd", dropna=False)
        counted = runs[runs["valid"]].pivot_table(column, "momentum", "wd").reindex_like(cells)
        logs = np.log10(counted.clip(lower=1e-7))
        image = axis.imshow(logs, cmap="viridis", aspect="auto", origin="lower")
        dark = image.norm.vmin + 0.55 * (image.norm.vmax - image.norm.vmin)
        for i, j in np.ndindex(cells.shape):
            value, colour = cells.iat[i, j], style.ON_COLOUR[0 if logs.iat[i, j] > dark else 1]
            if np.isnan(logs.iat[i, j]):
                colour = "0.45"
                hatched = {"fill": False, "hatch": "///", "ec": "0.8", "lw": 0}
                axis.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, **hatched))
            text = f"{value:.2g}".replace("e-0", "e-") if np.isfinite(value) else "–"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set(title=f"final {LABELS[column]}", xlabel="weight decay", ylabel="momentum")
        axis.set_xticks(range(cells.shape[1]), [f"{wd:g}" for wd in cells.columns], fontsize=8)
        axis.set_yticks(range(cells.shape[0]), [f"{momentum:g}" for momentum in cells.index], fontsize=8)
        axis.grid(visible=False)
    rests_on(figure, histories, profile)
    return figure


def scatter(groups: Groups, profile: str, columns=("nc1", "nc2", "nc3"), by_lr=False, fit=False):
    """Figures 2, 9 to 12, 21 to 23 and the like: final metrics of valid runs against NC0, one panel a column,
    or with `by_lr` one a learning rate. `fit` adds the regression on log10 NC0 (`analysis.regression`)."""
    runs = _valid(groups)
    fits = {column: analysis.regression(analysis.valid(groups), column) for column in columns if fit}
    parts = (list(runs.groupby("lr")) if by_lr else []) or [(None, runs)]
    figure, axes = style.panels(len(columns) * len(parts))
    for axis, (column, (lr, part)) in zip(axes, [(column, part) for column in columns for part in parts]):
        for label in groups:
            points = part[part["label"] == label]
            axis.plot(points["nc0"], points[column], **style.look(label) | {"ls": "", "alpha": 0.8})
        title = f"learning rate {lr:g}" if lr is not None else ""
        axis.set(xlabel=LABELS["nc0"], ylabel=LABELS[column], title=title)
        if style.nothing_drawn(axis):
            continue
        if column == "nc1":
            log_scale(axis)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=5))
        axis.xaxis.set_minor_locator(NullLocator())
        if fit and (of := f"LR={lr:g}" if by_lr else "all") in fits[column].index:
            line, ends = fits[column].loc[of], np.array(axis.get_xlim())
            axis.plot(ends, line["intercept"] + line["beta"] * np.log10(ends), color="black", lw=1)
            axis.set_xlim(ends)
            words = [title, f"slope {line['beta']:.3f}", f"R² {line['r2']:.2f}"]
            axis.set_title(", ".join(filter(None, words)))
    return _finished(figure, groups, profile)


def beside_paper(scales: dict[str, Groups], paper: dict[str, dict[str, float]], profile: str = "protocol"):
    """Tables 1 and 2 number by number: a panel a metric, a row an optimizer, the paper's value and, joined to it, each valid run
    of each scale."""
    names = [name for name in paper if any(name in groups for groups in scales.values())]
    figure, axes = style.panels(len(style.METRICS))
    marks = dict(zip(scales, ("o", "s", "^", "v")))
    for axis, column in zip(axes, style.METRICS):
        theirs = [paper[name][column] for name in names]
        axis.plot(theirs, names, "x", color="black", ms=7, mew=2, label="paper", zorder=3)
        for shade, (scale, groups) in zip(sequence(len(scales)), scales.items()):
            found = [(h.final[column], n) for n in names for h in groups.get(n, []) if h.valid]
            for value, name in found:
                axis.plot([paper[name][column], value], [name, name], color="0.75", lw=1.5, zorder=1)
            at = [value for value, _ in found], [name for _, name in found]
            axis.plot(*at, marks[scale], color=shade, ms=6, label=scale, zorder=2)
        axis.set(xscale="log", title=LABELS[column], ylim=(len(names) - 0.5, -0.5))
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=6))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    groups = {scale: sum(of_scale.values(), []) for scale, of_scale in scales.items()}
    return _finished(figure, groups, profile)


def ledger(groups: Groups, profile: str):
    """The squared sine between W and M^T, 1 - (1 - NC3^2 / 2)^2, as the sum of its three shares of ||W||^2
    (`metrics.nc_metrics`): a bar a label, means over its valid runs, which must have these columns
    (`analysis.with_gauge_fixed`). A run of which a share is nan is left out."""
    shares = ["gauge_share", "off_span_share", "in_span_share"]
    means = _valid(groups).dropna(subset=shares).groupby("label")[shares].mean().reindex(groups)
    figure, axis = plt.subplots(figsize=(6.4, 0.6 + 0.34 * len(groups)))
    left = 0
    for share, colour in zip(shares, sequence(3)):
        axis.barh(means.index, means[share], left=left, height=0.7, color=colour, label=LABELS[share])
        left = left + means[share]
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="mean share of $\\Vert W\\Vert^2$ not along $M^\\top$")
    return _finished(figure, groups, profile)


def law_figure(histories: list[History], profile: str):
    """NC0 of SGD or SGDW relative to its start, one colour a run: Theorem 3.1's exact law (line), the trained network (dots)."""
    varied = [f for f in ("momentum", "wd") if len({getattr(h.run, f) for h in histories}) > 1]
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    for history, colour in zip(histories, sequence(len(histories))):
        nc0 = history.frame.set_index("step")["nc0"]
        label = ", ".join(f"{name} {getattr(history.run, name):g}" for name in varied or ["momentum"])
        axis.plot(exact_law(history), color=colour, lw=1.2)
        axis.plot(nc0 / nc0.iloc[0], "o", ms=3, color=colour, label=label)
    axis.set(xlabel="step", ylabel="NC0 / initial NC0")
    log_scale(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    rests_on(figure, histories, profile)
    return figure


def gram_figure(history: History, profile: str):
    """Cosines between class means, between weight rows, and between the two [K, K] each: untrained above, trained below."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.8))
    epochs, ends = (0, int(history.final["epoch"])), history.grams[[0, -1]].astype(float)
    for row, epoch, grams in zip(axes, epochs, ends):
        m, w = (np.sqrt(gram.diagonal()) for gram in grams[:2])
        norms = {"class means": (m, m), "weight rows": (w, w), "weight rows × class means": (w, m)}
        for axis, gram, (name, (left, right)) in zip(row, grams, norms.items()):
            image = axis.imshow(gram / np.outer(left, right), cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set(title=f"{name}, epoch {epoch}", xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    rests_on(figure, [history], profile)
    return figure


def draw_geometry(axis, features, labels, weights) -> None:
    """Features [N, p] (points) with labels [N], their class means (discs), the rows of W [K, p] (arrows): p = 2 or 3."""
    features, labels, weights = (np.asarray(a) for a in (features, labels, weights))
    means = np.stack([features[labels == k].mean(0) for k in range(len(weights))])
    features, means = features - means.mean(0), means - means.mean(0)
    weights = weights * np.linalg.norm(means) / np.linalg.norm(weights)
    for k, colour in enumerate(style.CLASSES[: len(weights)]):
        axis.scatter(*features[labels == k].T, s=10, color=colour, alpha=0.7, lw=0)
        axis.scatter(*means[k], s=70, color=colour, edgecolor="black", lw=0.8, zorder=3)
        if features.shape[1] == 3:
            axis.quiver(0, 0, 0, *weights[k], color=colour, lw=1.8, arrow_length_ratio=0.12)
        else:
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0}
            axis.annotate("", weights[k], (0, 0), arrowprops=arrow)
    reach = 1.15 * max(np.abs(means).max(), np.abs(weights).max(), np.quantile(np.abs(features), 0.995))
    for name in "xyz"[: features.shape[1]]:
        axis.set(**{f"{name}lim": (-reach, reach), f"{name}ticks": []})
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


def _valid(groups: Groups) -> pd.DataFrame:
    """`analysis.table` of the runs that pass the paper's filter."""
    runs = analysis.table(groups)
    return runs[runs["valid"]]


def _mean_and_spread(axis, values: pd.Series, band: bool = True, **look) -> pd.Series:
    """Draws and returns the mean of the values at each index, in a band of one standard deviation, cut off at a tenth of
    the mean, since a logarithmic axis has no zero."""
    stats = values.groupby(level=0).agg(["mean", "std"])
    mean, spread = stats["mean"], stats["std"].fillna(0)
    axis.plot(mean.index, mean, **look)
    if band:
        low = np.maximum(mean - spread, 0.1 * mean)
        axis.fill_between(mean.index, low, mean + spread, color=look["color"], alpha=0.15, lw=0)
    return mean


def _finished(figure, groups: Groups, profile: str, legend: bool = True):
    """The figure with a legend of the first panel's lines on top, the caption underneath."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = len(handles) if len(handles) <= 4 else -(-len(handles) // 2)
    if legend and handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    rests_on(figure, [h for histories in groups.values() for h in histories], profile)
    return figure


def _join(values, form: str = "") -> str:
    return ", ".join(dict.fromkeys(f"{value:{form}}" for value in values))
