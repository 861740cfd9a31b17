"""Stored runs -> matplotlib figures and tables. Each figure carries its profile, data, seeds and run counts."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ncutils import metrics, published
from ncutils.training import History, exact_law, lr_schedule

# One hue a rule; the coupled variant dark and solid, the decoupled one light and dashed.
COLOURS = dict(zip(published.OPTIMIZERS, ["#1f5fa8", "#6aaee6", "#b5321f", "#f28c5b", "#1d7a3e", "#79c36a"]))
COLOURS |= {"SignGD": COLOURS["Signum"], "SignGDW": COLOURS["SignumW"]}
STYLES = {name: "--" if name.endswith("W") else "-" for name in COLOURS}
LABELS = dict(
    zip(metrics.KEYS, ["NC0", "NC1", "NC2", "NC2n", "NC2a", "NC2W", "NC2Wn", "NC2Wa", "NC2M", "NC3", "NC4"]),
    train_acc="training accuracy",
    test_acc="test accuracy",
)

Groups = dict[str, list[History]]  # a label -> its runs, one a seed


def set_style() -> None:
    """The book's look; figures are SVG: sharp, small, searchable."""
    plt.style.use("seaborn-v0_8-whitegrid")
    plt.rcParams |= {"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10}
    plt.rcParams |= {"figure.constrained_layout.use": True, "svg.fonttype": "none", "savefig.bbox": "tight"}
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")
    except ImportError:  # outside a notebook there is no inline backend
        pass


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
        f"{_join(r.epochs for r in runs)} epochs. {_count(seeds, 'Seed')} {_join(seeds)}. {len(runs)} {_count(runs, 'run')}"
    )
    if not dropped:
        return text + ", none dropped (all reach 99 % training accuracy)."
    reasons = f"{len(dropped) - diverged} under 99 % training accuracy, {diverged} diverged"
    return text + f", {len(dropped)} of them fail the paper's filter ({reasons})."


def training_curves(groups: Groups, profile: str, columns=("nc0", "nc1", "nc2", "nc3"), laws: dict | None = None):
    """Metrics over the epochs, one panel a column: the mean over seeds, a band from the least to the greatest.

    Runs that fail the filter are drawn faint. `laws`: label -> (epochs, values), drawn as dots in NC0's panel.
    """
    figure, axes = _panels(len(columns))
    for axis, column in zip(axes, columns):
        for label, histories in groups.items():
            curves = _curves(histories, column)
            look = {**_look(label), "alpha": 1.0 if all(h.valid for h in histories) else 0.35}
            axis.plot(curves.index, curves.mean(axis=1), **look)
            if curves.shape[1] > 1:
                axis.fill_between(
                    curves.index, curves.min(axis=1), curves.max(axis=1), color=look["color"], alpha=0.15, lw=0
                )
        if column == "nc0":
            for label, (epochs, values) in (laws or {}).items():
                axis.plot(epochs, values, ".", ms=4, color="black", mfc="none", zorder=5)
        axis.set(xlabel="epoch", title=LABELS.get(column, column))
        _log_scale(axis)
        _mark_lr_drops(axis, groups)
    handles = _handles(groups)
    if laws:
        handles.append(Line2D([], [], color="black", marker=".", ls="", label="closed form"))
    _finish(figure, handles, groups, profile)
    return figure


def singular_value_curves(groups: Groups, profile: str):
    """Figures 6 and 16: mean of all but the smallest singular value (line), and the smallest (dotted), of W and M.

    M is centred, so that its smallest singular value is 0 for every optimizer and has no place on a logarithmic axis.
    """
    figure, axes = _panels(2)
    for axis, matrix in zip(axes, "wm"):
        for label, histories in groups.items():
            look = {**_look(label), "ls": "-", "alpha": 1.0 if all(h.valid for h in histories) else 0.35}
            mean = _curves(histories, f"{matrix}_sv_mean").mean(axis=1)
            axis.plot(mean.index, mean, **look)
            if matrix == "w":
                smallest = _curves(histories, "w_sv_min").mean(axis=1)
                axis.plot(smallest.index, smallest, **{**look, "ls": ":", "label": None})
        name = {"w": "weights $W$", "m": "centred class means $M$"}[matrix]
        axis.set(xlabel="epoch", title=f"singular values of {name}")
        _log_scale(axis)
        _mark_lr_drops(axis, groups)
    handles = _handles(groups, solid=True)
    handles += [Line2D([], [], color="grey", ls=":", label="smallest, of $W$")]
    _finish(figure, handles, groups, profile)
    return figure


def decay_sweep(groups: dict[str, list[History]], profile: str, columns=("nc0", "nc3")):
    """Figure 1: final metrics against weight decay, mean and one standard deviation over the valid runs of each."""
    figure, axes = _panels(len(columns))
    for axis, column in zip(axes, columns):
        for label, histories in groups.items():
            points = pd.DataFrame(
                [(h.run.coupled_wd + h.run.decoupled_wd, h.final[column]) for h in histories if h.valid],
                columns=["wd", column],
                dtype=float,
            )
            stats = points.groupby("wd")[column].agg(["mean", "std"]).fillna(0)
            look = _look(label)
            axis.plot(stats.index, stats["mean"], marker="o", ms=4, **look)
            low = np.maximum(stats["mean"] - stats["std"], stats["mean"] * 0.1)  # a log axis has no zero
            axis.fill_between(stats.index, low, stats["mean"] + stats["std"], color=look["color"], alpha=0.15, lw=0)
        axis.set(xlabel="weight decay", title=f"final {LABELS.get(column, column)}")
        _log_scale(axis)
        positive = [w for hs in groups.values() for h in hs if (w := h.run.coupled_wd + h.run.decoupled_wd) > 0]
        axis.set_xscale("symlog", linthresh=min(positive, default=1e-3))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(0, 1.5 * max(positive, default=1))
    _finish(figure, _handles(groups), groups, profile)
    return figure


def law_figure(histories: list[History], profile: str):
    """NC0 of SGD or SGDW relative to its start, one colour a momentum: the exact law (line), trained
    networks (dots)."""
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    for history, colour in zip(histories, sequence(len(histories))):
        steps, nc0 = history.frame["step"], history.frame["nc0"]
        axis.plot(exact_law(history), color=colour, lw=1.2)
        axis.plot(steps, nc0 / nc0.iloc[0], "o", ms=3, color=colour, label=f"momentum {history.run.momentum:g}")
    axis.set(xlabel="step", ylabel="NC0 / initial NC0")
    _log_scale(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.text(0.5, -0.02, caption(histories, profile), ha="center", va="top", fontsize=8, color="0.35", wrap=True)
    return figure


def law_table(histories: list[History]):
    """Final NC0 by the exact law and as measured, relative to its start, and the largest relative error above 1e-4."""
    rows = []
    for history in histories:
        start = history.frame["nc0"].iloc[0]
        law, measured = exact_law(history)[history.frame["step"]], history.frame["nc0"].to_numpy() / start
        error = np.abs(measured / law - 1)[law > 1e-4].max()  # where float32 can follow
        rows.append(
            (history.run.optimizer, f"{history.run.momentum:g}", history.run.seed, law[-1], measured[-1], error)
        )
    columns = ["optimizer", "momentum", "seed", "final / initial, law", "measured", "largest relative error above 1e-4"]
    table = pd.DataFrame(rows, columns=columns)
    return table.style.format("{:.3g}", subset=columns[3:]).hide(axis="index")


def sequence(n: int) -> list:
    """n colours of an ordered quantity, dark to light."""
    return list(plt.get_cmap("viridis")(np.linspace(0, 0.85, n)))


def final_table(groups: Groups, published_values: dict, columns=("nc0", "nc1", "nc2", "nc3")) -> pd.DataFrame:
    """A row an optimizer: each final metric, mean (and std over seeds), its change since initialisation, the paper's.

    Means are over the valid runs; an optimizer without one shows its dropped runs, and says so.
    """
    rows = {}
    for label, histories in groups.items():
        valid = [h for h in histories if h.valid]
        row = {}
        for column in columns:
            final = np.array([h.final[column] for h in valid or histories])
            change = np.mean([h.final[column] / h.frame[column].iloc[0] - 1 for h in valid or histories])
            spread = f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{final.std(ddof=1):.2g}" if len(final) > 1 else ""
            value = f"{final.mean():.3g}{spread} ({_percent(change)})" if np.isfinite(final).all() else "undefined"
            row[LABELS[column], "here"] = value
            row[LABELS[column], "paper"] = f"{published_values.get(label, {}).get(column, float('nan')):g}"
        accuracy = np.mean([h.final["train_acc"] for h in valid or histories])
        dropped = f" ({len(histories) - len(valid)} of {len(histories)} dropped)" if len(valid) < len(histories) else ""
        row["training accuracy", "here"] = f"{accuracy:.1%}{dropped}"
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _panels(n: int):
    """Two panels a row, of a size whose text stays readable at the width of a page."""
    columns = min(n, 2)
    figure, axes = plt.subplots(-(-n // columns), columns, figsize=(4 * columns, 2.9 * -(-n // columns)), squeeze=False)
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, list(axes.flat[:n])


def _log_scale(axis) -> None:
    """A logarithmic y axis with few, plain tick labels: powers of ten, and 2 and 5 times them on a short axis."""
    axis.set_yscale("log")
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-7))  # a network that decayed to zero would hide the others
    low, high = axis.get_ylim()
    short = high < 100 * low
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=8))
    axis.yaxis.set_minor_locator(NullLocator())
    if short or low >= 1e-3:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _percent(change: float) -> str:
    text = "≫ 100 %" if change > 2 else "< -99.5 %" if change < -0.995 else f"{100 * change:+.1f} %"
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def _curves(histories: list[History], column: str) -> pd.DataFrame:
    """epoch x run."""
    return pd.concat([h.frame.set_index("epoch")[column] for h in histories], axis=1)


def _look(label: str) -> dict:
    """Colour and line style by the optimizer's name, the label's first word."""
    name = label.split(" ")[0]
    return {"color": COLOURS.get(name, "grey"), "ls": STYLES.get(name, "-"), "label": label}


def _mark_lr_drops(axis, groups: Groups) -> None:
    first = next(iter(groups.values()))[0].run
    for epoch in np.flatnonzero(np.diff(lr_schedule(first))) + 1:
        axis.axvline(epoch, color="grey", lw=0.7, ls=":", zorder=0)


def _handles(groups: Groups, solid: bool = False) -> list[Line2D]:
    return [Line2D([], [], **(_look(label) | ({"ls": "-"} if solid else {}))) for label in groups]


def _finish(figure, handles, groups: Groups, profile: str) -> None:
    """Legend on top, caption underneath."""
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if len(handles) <= 4 else -(-len(handles) // 2),
        frameon=False,
    )
    text = caption([h for histories in groups.values() for h in histories], profile)
    figure.text(0.5, -0.02, text, ha="center", va="top", fontsize=8, color="0.35", wrap=True)


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
                "", weights[k], (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0}
            )
    reach = 1.15 * max(np.abs(means).max(), np.abs(weights).max(), np.quantile(np.abs(features), 0.995))
    limits = {f"{name}lim": (-reach, reach) for name in "xyz"[: features.shape[1]]}
    axis.set(**limits, **{f"{name}ticks": [] for name in "xyz"[: features.shape[1]]})
    axis.set_aspect("equal")


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
    figure.text(0.5, -0.02, caption([history], profile), ha="center", va="top", fontsize=8, color="0.35", wrap=True)
    return figure
