"""What the paper says and what is seen here, line by line: every figure and table, judged by rule from the stored runs.

A line's comparisons are counted as shares that go the paper's way. All shares at 0.9 or more: agree. All under 0.5:
disagree. Otherwise: partly. Without stored runs: not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from ncutils import analysis
from ncutils.analysis import Groups, pairs_in_words
from ncutils.book import published
from ncutils.book.figures import LABELS
from ncutils.files import project_folder
from ncutils.optimizers import COUPLED, OPTIMIZERS
from ncutils.runs import History, exact_law
from ncutils.store import Store
from ncutils.sweeps import read_grid


@dataclass(frozen=True)
class Seen:
    """What is seen: in words, as shares of comparisons that go the paper's way, and the runs that show it."""

    text: str
    shares: list[float]
    runs: list[History]

    @property
    def verdict(self) -> str:
        if not self.runs:
            return "not run"
        if all(s >= 0.9 for s in self.shares):
            return "agree"
        return "disagree" if all(s < 0.5 for s in self.shares) else "partly"


@dataclass(frozen=True)
class Line:
    item: str
    says: str
    page: str
    look: Callable[[], Seen]


def board() -> pd.DataFrame:
    """One row a figure or table: item, says, sees, scale, verdict, page."""
    rows = []
    for line in lines():
        try:
            seen = line.look()
        except LookupError as error:
            seen = Seen(str(error.args[0]), [], [])
        rows.append((line.item, line.says, seen.text, scale(seen.runs), seen.verdict, line.page))
    return pd.DataFrame(rows, columns=["item", "says", "sees", "scale", "verdict", "page"])


def markdown() -> str:
    """The board as a Markdown table with links to the chapters, headed by its counts."""
    table = board()
    counts = table["verdict"].value_counts()
    found = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("agree", "partly", "disagree", "not run"))
    out = [
        f"Of {len(table)} figures and tables: {found}. Judged by rule (`ncutils/scoreboard.py`) from the runs in `results/`.",
        "",
        "| in the paper | it says | here | scale | |",
        "|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        out.append(
            f"| [{row.item}](chapters/{row.page}.ipynb) | {row.says} | {row.sees} | {row.scale} | **{row.verdict}** |"
        )
    return "\n".join(out) + "\n"


def write(page: Path) -> None:
    """Puts the table between the page's two scoreboard marks."""
    text = page.read_text()
    head, mark, rest = text.partition("<!-- scoreboard -->\n")
    _, end, tail = rest.partition("<!-- end of scoreboard -->")
    if not mark or not end:
        raise ValueError(
            f"{page} has no place for the scoreboard: <!-- scoreboard --> and <!-- end of scoreboard -->"
        )
    page.write_text(head + mark + "\n" + markdown() + "\n" + end + tail)


def scale(runs: list[History]) -> str:
    """At which scale runs were made, in short."""
    if not runs:
        return ""
    runs = list({h.run: h for h in runs}.values())
    widths = sorted({h.run.width for h in runs})
    images = sorted({h.info["n_train"] for h in runs})
    epochs = sorted({h.run.epochs for h in runs})
    width = "paper's width" if widths == [64] else f"width {_numbers(widths)} of 64"
    if {h.run.arch for h in runs} == {"mlp"}:
        width = f"width {_numbers(widths)}"  # the paper does not state its own
    return f"{width}, {_numbers(images)} samples, {_numbers(epochs)} epochs, {len(runs)} runs"


def _numbers(values) -> str:
    return ", ".join(f"{v:,}" for v in values)


# ---- where the runs are


def _of_chapter(chapter: str, same: tuple[str, ...], keep, enough=bool) -> tuple[list[History], dict]:
    """A chapter's stored runs and its parameters p, at the paper's profile or else the laptop's: runs that are the same as p in
    these fields and that keep(run, p), if there are `enough` of them."""
    for profile in ("paper", "laptop"):
        p = yaml.safe_load((project_folder("params") / profile / f"{chapter}.yaml").read_text())
        same_as_p = [
            h for h in Store().histories() if all(getattr(h.run, name) == p.get(name) for name in same)
        ]
        runs = [h for h in same_as_p if keep(h.run, p)]
        if enough(runs):
            return runs, p
    raise LookupError("no run of this setting is stored")


def _grid(arch: str, dataset: str) -> Groups:
    """The stored runs of a setting, of the largest profile that has some of every optimizer."""
    names = {"CIFAR10": ("CIFAR10", "cifar10-jpeg")}.get(dataset, (dataset, dataset))
    for profile, name in zip(("paper", "laptop"), names):
        groups, _ = analysis.stored_grid(
            project_folder(f"params/{profile}/grid.yaml"), arch=arch, dataset=name
        )
        if len(groups) == 6:
            return groups
    raise LookupError("no run of this setting is stored")


def _stored(**fields) -> list[History]:
    """Shipped and local runs with these values of Run's fields."""
    runs = [h for h in Store().histories() if all(getattr(h.run, name) == v for name, v in fields.items())]
    if not runs:
        raise LookupError("no such run is stored")
    return runs


def _named(runs: list[History]) -> Groups:
    """Runs by optimizer; those without decay count for both of a rule's."""
    groups = {}
    for h in runs:
        groups.setdefault(h.run.optimizer, []).append(h)
        if not h.run.wd:
            groups.setdefault(h.run.optimizer + "W", []).append(h)
    return groups


def _all(groups: Groups) -> list[History]:
    return [h for histories in groups.values() for h in histories]


# ---- what is compared


def _adam_over_wd(arch: str, dataset: str) -> Seen:
    groups = _grid(arch, dataset)
    text, shares = pairs_in_words(groups, "AdamW")
    return Seen(text, shares, groups["Adam"] + groups["AdamW"])


def _signum_and_sgd_over_wd(arch: str, dataset: str) -> Seen:
    groups = _grid(arch, dataset)
    falls = {
        (name, c): analysis.rank_correlation(groups[name], c)[0]
        for name in ("SGD", "Signum")
        for c in ("nc0", "nc3")
    }
    text, shares = pairs_in_words(groups, "SignumW")
    down = np.mean(
        [r <= -0.8 for r in falls.values()]
    )  # nan, where too few runs are valid, counts against it
    known = [r for r in falls.values() if np.isfinite(r)]
    ranks = (
        f"{min(known):+.2f} to {max(known):+.2f} in {len(known)} of 4 cases"
        if known
        else "unknown: too few valid runs"
    )
    text = f"rank correlation with wd (SGD, Signum; NC0, NC3) {ranks}; {text}"
    runs = [h for name in ("SGD", "SGDW", "Signum", "SignumW") for h in groups[name]]
    return Seen(text, [down, *shares], runs)


def _figure_3() -> Seen:
    """In addition: SGDW's NC0 and NC3 within a factor of two of SGD's at the same decay, where momentum makes them differ."""
    groups = _grid("resnet9", "FashionMNIST")
    seen = _signum_and_sgd_over_wd("resnet9", "FashionMNIST")
    coupled = {
        (analysis.like(h.run), h.run.wd): h for h in groups["SGD"] if h.valid and h.run.wd and h.run.momentum
    }
    text, shares = [], []
    for c in ("nc0", "nc3"):
        ratios = [
            h.final[c] / coupled[analysis.like(h.run), h.run.wd].final[c]
            for h in groups["SGDW"]
            if h.valid and (analysis.like(h.run), h.run.wd) in coupled
        ]
        text.append(f"{LABELS[c]} {min(ratios):.2g} to {max(ratios):.2g}")
        shares.append(float(np.mean([1 / 2 <= r <= 2 for r in ratios])))
    return Seen(
        f"{seen.text}; SGDW over SGD at one decay: {', '.join(text)}", seen.shares + shares, seen.runs
    )


def _follows(arch: str, dataset: str, column: str, by_lr: bool = False) -> Seen:
    """A metric regressed on log10 NC0: positive slopes whose 95 % interval excludes 0."""
    groups = _grid(arch, dataset)
    fits = analysis.regression(analysis.valid(groups), column)
    fits = fits.drop(index="all") if by_lr else fits.loc[["all"]]
    slopes = ", ".join(f"{s:+.3f}" for s in fits["beta"])
    explained = ", ".join(f"{r:.2f}" for r in fits["r2"])
    rates = f" at lr {', '.join(label[3:] for label in fits.index)}" if by_lr else ""
    return Seen(f"slope {slopes}, R² {explained}{rates}", [np.mean(fits["ci_low"] > 0)], _all(groups))


def _follows_less(arch: str, dataset: str, column: str, by_lr: bool = False) -> Seen:
    """A metric that NC0 explains less than it explains NC3."""
    seen = _follows(arch, dataset, column, by_lr)
    fits, of_nc3 = (analysis.regression(analysis.valid(_grid(arch, dataset)), c) for c in (column, "nc3"))
    rows = fits.index.drop("all") if by_lr else ["all"]
    less = np.mean(fits.loc[rows, "r2"] < of_nc3.loc[rows, "r2"])
    return Seen(seen.text, [less, *seen.shares], seen.runs)


def _heat_map() -> Seen:
    runs = [h for h in _grid("resnet9", "FashionMNIST")["SGD"] if h.run.lr == 0.0679 and h.run.seed == 0]
    momentum = {
        c: analysis.rank_correlation([h for h in runs if h.run.wd], c, "momentum")[0]
        for c in ("nc0", "nc2", "nc3")
    }
    decay = {c: analysis.rank_correlation(runs, c)[0] for c in ("nc0", "nc2", "nc3")}
    text = f"rank correlation with momentum {_signed(momentum)}; rank correlation with wd {_signed(decay)}"
    return Seen(text, [np.mean([r <= -0.8 for r in found.values()]) for found in (momentum, decay)], runs)


def _table1_runs() -> Groups:
    """The six optimizers in Table 1's setting, at the largest profile stored."""

    def keep(run, p):
        return run.wd == p["wd"] and run.lr == (p["lr_sgd"] if run.rule == "sgd" else p["lr"])

    def whole(runs):
        return {h.run.optimizer for h in runs if not h.diverged} == set(OPTIMIZERS)

    runs, _ = _of_chapter("03_adamw", ("dataset", "width", "epochs", "momentum", "n_train"), keep, whole)
    return {n: [h for h in runs if h.run.optimizer == n and not h.diverged] for n in OPTIMIZERS}


def _finals(runs: list[History], columns, x: list[float]) -> pd.DataFrame:
    """A row a run: x, and final values."""
    return pd.DataFrame([{c: h.final[c] for c in columns} for h in runs], dtype=float).assign(x=x)


def _ends(groups: Groups, column: str) -> pd.Series:
    return pd.Series({name: np.mean([h.final[column] for h in runs]) for name, runs in groups.items()})


def _signed(values) -> str:
    return ", ".join(f"{LABELS[c]} {r:+.2f}" for c, r in values.items())


def _training_curves() -> Seen:
    groups = _table1_runs()
    shares, words = [], []
    for column in ("nc0", "nc1", "nc2", "nc3"):
        ends = _ends(groups, column)
        above = [ends[d] > ends[c] for d, c in COUPLED.items()]
        shares.append(np.mean(above))
        words.append(f"{LABELS[column]} {sum(above)} of 3")
    return Seen("decoupled above coupled: " + ", ".join(words) + " rules", shares, _all(groups))


def _singular_values(names: tuple[str, ...]) -> Seen:
    groups = _table1_runs()
    change = {
        n: np.mean([h.final["w_sv_min"] / h.frame["w_sv_min"].iloc[0] for h in groups[n]]) for n in names
    }
    shares = [
        float(factor > 1 if n in ("AdamW", "SignumW") else factor < 0.5) for n, factor in change.items()
    ]
    text = "smallest singular value of W, end over start: " + ", ".join(
        f"{n} {f:.2g}" for n, f in change.items()
    )
    return Seen(text, [np.mean(shares)], [h for n in names for h in groups[n]])


def _signumw_singular_values() -> Seen:
    runs = _table1_runs()["SignumW"]
    change = {
        m: np.mean([h.final[f"{m}_sv_mean"] / h.frame[f"{m}_sv_mean"].iloc[0] for h in runs]) for m in "wm"
    }
    smallest = np.mean([h.final["w_sv_min"] / h.frame["w_sv_min"].iloc[0] for h in runs])
    text = f"SignumW, end over start: smallest of W {smallest:.2g}, others {change['w']:.2g}; of M {change['m']:.2g}"
    return Seen(text, [float(smallest > 2), float(change["w"] > 2), float(change["m"] > 2)], runs)


def _interpolation() -> Seen:
    same = ("dataset", "width", "epochs", "momentum", "lr", "n_train")
    runs, _ = _of_chapter(
        "05_interpolation",
        same,
        lambda run, p: (run.arch, run.rule) == ("resnet9", "adam") and abs(run.wd - p["wd"]) < 1e-9,
        lambda runs: len({h.run.coupled_wd for h in runs if h.valid}) > 3,
    )
    runs = [h for h in runs if h.valid]
    means = (
        _finals(runs, ("nc0", "nc2", "nc3", "test_acc"), [h.run.coupled_wd for h in runs]).groupby("x").mean()
    )
    ranks = means.reset_index().corr("spearman").loc["x", ["nc0", "nc2", "nc3"]]
    spread = means["test_acc"].max() - means["test_acc"].min()
    text = f"rank correlation with the coupled share {_signed(ranks)}; test accuracy varies by {100 * spread:.1f} points"
    return Seen(text, [(ranks <= -0.8).mean(), spread < 0.02], runs)


def _sign_descent() -> Seen:
    """Settled: the last third of training moves NC0 by less than a twentieth."""
    runs = _stored(dataset="separable", arch="mlp", schedule="constant")
    turns, stays, settles, words = [], [], [], []
    for name, label in (("Signum", "SignGD"), ("SignumW", "SignGDW")):
        own = [h for h in runs if h.run.optimizer == name and h.run.momentum == 0]
        for h in own:
            nc0 = h.frame.set_index("epoch")["nc0"]
            start, end, peak = nc0.iloc[0], nc0.iloc[-1], nc0.max()
            if name == "Signum":
                turns.append(peak > 1.05 * start and end < 0.9 * peak)
            else:
                stays.append(end > start and end >= 0.9 * peak)
                settles.append(end / nc0.loc[: 2 * h.run.epochs / 3].iloc[-1])
        start, peak, end = np.mean(
            [[h.frame["nc0"].iloc[0], h.frame["nc0"].max(), h.final["nc0"]] for h in own], axis=0
        )
        words.append(f"{label} {start:.2g}, at most {peak:.2g}, ends at {end:.2g}")
    text = f"NC0 of {'; '.join(words)}, {100 * (np.mean(settles) - 1):+.0f} % in the last third"
    shares = (turns, stays, [abs(s - 1) < 0.05 for s in settles])
    return Seen(text, [np.mean(share) for share in shares], runs)


def _ufm() -> Seen:
    runs = [h for h in _stored(arch="ufm", width=64) if h.final["train_acc"] == 1 and h.run.wd]
    medians = {
        c: {
            n: np.median([h.final[c] for h in runs if h.run.optimizer == n])
            for n in ("Adam", "AdamW", "SGDW")
        }
        for c in ("nc0", "nc3")
    }
    factors = {(c, n): m["AdamW"] / m[n] for c, m in medians.items() for n in ("Adam", "SGDW")}
    text = "median AdamW over " + ", ".join(f"{n} {LABELS[c]} {f:.2g} ×" for (c, n), f in factors.items())
    return Seen(text, [np.mean([f >= 10 for f in factors.values()])], runs)


def _longer(*optimizers: str) -> tuple[list[History], dict]:
    def keep(run, p):
        return run.optimizer in optimizers and run.lr == (p["lr_sgd"] if run.rule == "sgd" else p["lr"])

    return _of_chapter("13_more_epochs", ("dataset", "width", "epochs", "n_train"), keep)


def _more_epochs() -> Seen:
    runs, p = _longer("Adam", "AdamW")
    groups = _named(runs)
    text, shares = pairs_in_words(groups, "AdamW")
    changes = []
    for h in groups["AdamW"]:
        before = Store().get(h.run.model_copy(update={"epochs": p["epochs_before"]}))
        if h.run.wd and h.valid and before and before.valid:
            changes += [h.final[c] / before.final[c] for c in ("nc0", "nc3")]
    text += f" after {p['epochs'] // p['epochs_before']} times the epochs, which changed AdamW's NC0 and NC3 by factors of {min(changes):.2g} to {max(changes):.2g}"
    return Seen(text, [*shares, np.mean([1 / 2 < c < 2 for c in changes])], runs)


def _more_epochs_of_sgd() -> Seen:
    runs, _ = _longer("SGD")
    lawful = [h for h in runs if exact_law(h)[-1] > 1e-4]
    error = max(abs(h.final["nc0"] / h.frame["nc0"].iloc[0] / exact_law(h)[-1] - 1) for h in lawful)
    kept = [h for h in runs if h.valid]
    ranks = (
        _finals(kept, ("nc0", "nc2", "nc3"), [exact_law(h)[-1] for h in kept])
        .corr("spearman")
        .loc["x"]
        .drop("x")
    )
    text = f"NC0 by the exact law within {error:.1g} in the {len(lawful)} runs where it ends above 1e-4 of its start; the more decay has acted, the lower NC0, NC2, NC3: rank correlation {', '.join(f'{r:+.2f}' for r in ranks)} over {len(kept)} valid runs"
    return Seen(text, [(ranks >= 0.8).mean()], runs)


def _nc4() -> Seen:
    groups = _grid("resnet9", "FashionMNIST")
    kept = analysis.valid(groups)
    table = _finals(kept, ("nc1", "nc2", "nc3"), [h.final["nc4"] for h in kept])
    ranks, satisfied = table.corr("spearman").loc["x"].drop("x"), (table["x"] > 0.99).mean()
    text = f"NC4 above 0.99 in {satisfied:.0%} of {len(kept)} valid runs; rank correlation with NC1, NC2, NC3 {', '.join(f'{r:+.2f}' for r in ranks)}"
    return Seen(text.replace("%", " %"), [satisfied, (ranks.abs() < 0.3).mean()], _all(groups))


def _vit() -> Seen:
    runs, _ = _of_chapter("15_vit", ("width", "dataset"), lambda run, _: run.arch == "vit")
    groups = _named(runs)
    text, _ = pairs_in_words(groups, "AdamW")  # the paper says nothing of it for the transformer
    falls = {c: analysis.rank_correlation(groups["SGD"], c)[0] for c in ("nc0", "nc3")}
    text += f"; rank correlation of SGD's NC0 and NC3 with wd {falls['nc0']:+.2f} and {falls['nc3']:+.2f}"
    shares, words = [float(np.mean([r <= -0.8 for r in falls.values()]))], []
    for name in ("Adam", "AdamW"):
        for c, turn in (("nc0", np.argmax), ("nc3", np.argmin)):
            means = (
                pd.Series([h.final[c] for h in groups[name] if h.valid])
                .groupby([h.run.wd for h in groups[name] if h.valid])
                .mean()
            )
            shares.append(float(0 < turn(means.to_numpy()) < len(means) - 1))
            words.append(
                f"{LABELS[c]} of {name} {means.iloc[0]:.2g} … {means.iloc[turn(means.to_numpy())]:.2g} … {means.iloc[-1]:.2g}"
            )
    return Seen(f"{text}; over wd (first, extreme, last): {', '.join(words)}", shares, runs)


def _imagenet(columns) -> Seen:
    try:
        runs, p = _of_chapter("16_imagenet", ("dataset",), lambda run, _: run.arch == "resnet50")
    except LookupError:
        raise LookupError("the chapter trains ResNet50 from a folder of images") from None
    text, shares = pairs_in_words(_named(runs), "AdamW", columns)
    if p["dataset"] == "imagenet":
        return Seen(text, shares, runs)
    raise LookupError(
        f"not on ImageNet; a narrow ResNet50 on {runs[0].info['n_train']:,} small images: {text}"
    )


def _order_of_the_six() -> Seen:
    groups = _table1_runs()
    theirs = pd.DataFrame(published.TABLE1).T
    ranks = pd.Series({c: _ends(groups, c).corr(theirs[c], "spearman") for c in theirs})
    (law,) = {round(100 * (exact_law(h)[-1] - 1), 1) for h in groups["SGDW"]}
    measured = 100 * np.mean([h.final["nc0"] / h.frame["nc0"].iloc[0] - 1 for h in groups["SGDW"]])
    text = f"rank correlation with the paper's six values {_signed(ranks)}; "
    text += f"SGDW's NC0 {measured:+.1f} % (law {law:+.1f} %)"
    return Seen(text, [(ranks >= 0.7).mean(), abs(measured - law) < 1], _all(groups))


def _best_runs() -> Seen:
    groups = _grid("resnet9", "FashionMNIST")
    best = {n: h.final for n, h in analysis.best(groups).items() if n in published.TABLE2}
    claims = {
        f"{extreme.__name__} {LABELS[c]}": best["AdamW"][c] == extreme(b[c] for b in best.values())
        for extreme, columns in ((min, ("nc1", "nc2")), (max, ("nc0", "nc3")))
        for c in columns
    }
    text = "AdamW's best run has " + ", ".join(
        f"{claim}: {'yes' if true else 'no'}" for claim, true in claims.items()
    )
    text = text.replace("min ", "the smallest ").replace("max ", "the largest ")
    return Seen(text, [np.mean(list(claims.values()))], _all(groups))


def _counts() -> Seen:
    entries = read_grid(project_folder("params/paper/grid.yaml"))
    settings = {(run.arch, run.dataset, name) for name, run in entries}
    stored = {
        h.run: h
        for name in ("resnet9", "vgg9")
        for d in ("MNIST", "FashionMNIST", "CIFAR10")
        for h in _all(_grid(name, d))
    }
    kept = np.mean([h.valid for h in stored.values()])
    text = f"{len(entries):,} entries in {len(settings)} settings, {len({r.hash for _, r in entries}):,} distinct; of the {len(stored)} run here, with other decays, {100 * kept:.0f} % pass the filter"
    return Seen(text, [float(len(entries) == 3888 and len(settings) == 36)], list(stored.values()))


def _hyperparameters() -> Seen:
    groups = _grid("resnet9", "FashionMNIST")
    best = {n: h.run for n, h in analysis.best(groups).items()}
    decayed, stronger = (
        sum(r.wd > 0 for r in best.values()),
        sum(best[d].wd > best[c].wd for d, c in COUPLED.items()),
    )
    theirs = sum(published.TABLE4[d][2] > published.TABLE4[c][2] for d, c in COUPLED.items())
    text = f"{decayed} of 6 best runs have weight decay; larger under the decoupled optimizer for {stronger} of 3 rules (paper: {theirs})"
    return Seen(text, [decayed / 6, float(stronger >= theirs)], _all(groups))


def _table5() -> Seen:
    groups = _grid("resnet9", "FashionMNIST")
    fits = analysis.regression(analysis.valid(groups))
    same = fits.index.intersection(list(published.TABLE5))
    ours = fits.loc[same]
    overlap = [
        ours.loc[r, "ci_low"] <= published.TABLE5[r][6] and published.TABLE5[r][5] <= ours.loc[r, "ci_high"]
        for r in same
    ]
    text = f"slope positive in {(ours['ci_low'] > 0).sum()} of {len(same)} rows, its interval meets the paper's in {sum(overlap)}; R² {ours['r2'].min():.2f} to {ours['r2'].max():.2f} (paper: 0.73 to 0.84)"
    return Seen(text, [np.mean(ours["ci_low"] > 0), np.mean(overlap)], _all(groups))


# ---- the lines

ABOVE = "AdamW ends above Adam in NC0 and NC3"
OVER_WD = "more decay lowers NC0 and NC3 of SGD and Signum; SignumW stays above Signum"
LESS = "follows NC0 less than NC3 does, a trend is visible"


def lines() -> list[Line]:
    rf = ("resnet9", "FashionMNIST")
    found = [
        Line("Figure 1", ABOVE + " at every weight decay", "03_adamw", lambda: _adam_over_wd(*rf)),
        Line(
            "Figure 2",
            "NC3 rises with log NC0 at each learning rate",
            "12_regression",
            lambda: _follows(*rf, "nc3", True),
        ),
        Line("Figure 3", OVER_WD + "; SGDW stays close to SGD", "02_weight_decay", _figure_3),
        Line("Figure 4", "momentum and decay both lower NC0, NC2, NC3 of SGD", "02_weight_decay", _heat_map),
        Line(
            "Figure 5",
            "at the end of training coupled decay is lower than decoupled",
            "03_adamw",
            _training_curves,
        ),
        Line(
            "Figure 6",
            "W's smallest singular value grows under AdamW and SignumW, falls under coupled decay",
            "03_adamw",
            lambda: _singular_values(("SGD", "Adam", "Signum", "AdamW", "SignumW")),
        ),
        Line(
            "Figure 7",
            "from AdamW to Adam NC0, NC2, NC3 fall, accuracy stays",
            "05_interpolation",
            _interpolation,
        ),
        Line(
            "Figure 8",
            "NC0 rises and falls under SignGD, settles above zero under SignGDW",
            "09_sign_descent",
            _sign_descent,
        ),
        Line("Figure 9", "as Figure 2", "12_regression", lambda: _follows(*rf, "nc3", True)),
        Line(
            "Figure 10",
            "NC3 rises with log NC0 over all learning rates",
            "12_regression",
            lambda: _follows(*rf, "nc3"),
        ),
        Line("Figure 11", "NC1 " + LESS, "12_regression", lambda: _follows_less(*rf, "nc1", True)),
        Line("Figure 12", "NC2 " + LESS, "12_regression", lambda: _follows_less(*rf, "nc2", True)),
        Line(
            "Figure 13",
            "longer training hardly moves AdamW's NC0 and NC3; it stays above Adam",
            "13_more_epochs",
            _more_epochs,
        ),
        Line(
            "Figure 14",
            "longer SGD: the trend with decay is unchanged",
            "13_more_epochs",
            _more_epochs_of_sgd,
        ),
        Line("Figure 15", "UFM: AdamW's NC0 and NC3 are 10 times Adam's and SGDW's", "10_ufm", _ufm),
        Line("Figure 16", "SignumW: singular values of W and M grow", "03_adamw", _signumw_singular_values),
        Line("Figure 17", "ImageNet, ResNet50: " + ABOVE, "16_imagenet", lambda: _imagenet(("nc0", "nc3"))),
        Line(
            "Figure 18",
            "ImageNet, ResNet50: NC1 and NC2 over decay",
            "16_imagenet",
            lambda: _imagenet(("nc1", "nc2")),
        ),
    ]
    for setting in ("VGG9 FashionMNIST", "ResNet9 CIFAR10", "VGG9 CIFAR10", "ResNet9 MNIST", "VGG9 MNIST"):
        name, dataset = setting.split()
        of = (name.lower(), dataset)
        for says, look in (
            (ABOVE, partial(_adam_over_wd, *of)),
            (OVER_WD, partial(_signum_and_sgd_over_wd, *of)),
            ("NC1 " + LESS, partial(_follows_less, *of, "nc1")),
            ("NC2 " + LESS, partial(_follows_less, *of, "nc2")),
            ("NC3 rises with log NC0", partial(_follows, *of, "nc3")),
        ):
            item = f"Figure {len(found) + 1}"
            found.append(Line(item, f"{name} on {dataset}: {says}", "14_six_settings", look))
    return found + [
        Line(
            "Figure 44",
            "NC4 is satisfied wherever training accuracy is, uncorrelated with NC1 to NC3",
            "11_nc_in_practice",
            _nc4,
        ),
        Line(
            "Figure 45",
            "vision transformer: SGD's NC0 and NC3 fall with decay; Adam's and AdamW's NC0 rises, then falls, their NC3 is U-shaped",
            "15_vit",
            _vit,
        ),
        Line(
            "Table 1",
            "the six optimizers at the end of training; SGDW's NC0 -68.9 %",
            "03_adamw",
            _order_of_the_six,
        ),
        Line(
            "Table 2",
            "best runs: AdamW has the smallest NC1 and NC2, the largest NC0 and NC3",
            "11_nc_in_practice",
            _best_runs,
        ),
        Line("Table 3", "36 settings, 3,888 runs", "14_six_settings", _counts),
        Line(
            "Table 4",
            "the best runs' hyper-parameters: with decay, larger where decoupled",
            "11_nc_in_practice",
            _hyperparameters,
        ),
        Line("Table 5", "NC3 on log NC0: slopes 0.14 to 0.20, R² 0.73 to 0.84", "12_regression", _table5),
    ]
