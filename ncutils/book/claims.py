"""What the paper says, a row a figure or table, and the comparisons of stored runs that each of its statements rests on.

A judge gets the table of all shipped runs and returns what is `Seen`: in words, and as statements with their comparisons,
which `verdicts` counts and judges. Where no run of the setting is stored, it raises `NotRun`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pandas as pd
import yaml

from ncutils import analysis, store
from ncutils.book import published
from ncutils.book.style import METRICS
from ncutils.book.verdicts import ACCURACY, CLOSE, MUCH, STILL, UNRELATED, Statement
from ncutils.files import project_folder
from ncutils.optimizers import COUPLED
from ncutils.runs import Run, exact_law, same_steps

# the main text's setting, and those of Figures 19 to 43
MAIN, *OTHERS = (f"{n} on {d}" for d in ("FashionMNIST", "CIFAR10", "MNIST") for n in ("ResNet9", "VGG9"))


class NotRun(Exception):
    """No run is stored from which a claim could be judged. Its text, if any, says more."""


@dataclass(frozen=True)
class Seen:
    """What is seen: in words, as statements of the paper with their comparisons, and the runs that show it."""

    text: str
    statements: list[Statement]
    runs: pd.DataFrame


def look(judge, *arguments) -> Seen:
    """What a judge sees, or, without runs, why it cannot judge. A statement with the very comparisons of one before it is left
    out: where the best decay is the only one that has acted, it is no second statement."""
    try:
        seen = judge(*arguments)
    except NotRun as reason:
        return Seen(str(reason) or "no run of this setting is stored", [], pd.DataFrame())
    by_comparisons: dict[object, Statement] = {}
    for i, s in enumerate(seen.statements):
        pairs = (
            s.found[["one", "other", "value"]].itertuples(index=False) if s.ratios else ()
        )  # else mere signs
        by_comparisons.setdefault(frozenset(pairs) or i, s)
    return replace(seen, statements=list(by_comparisons.values()))


def filters(stored: pd.DataFrame) -> pd.DataFrame:
    """How many pairs have the decoupled run above, where runs of less training accuracy count, or only of more, and the metric
    is defined: a row for each metric, a column for each filter; of the six settings, and of the two on CIFAR-10, whose strong
    decays fit least."""
    named = {"nc0": "NC0", "nc3": "NC3", "nc3c": "NC3, gauge fixed"}
    least = {"none": 0.0, "95 %": 0.95, "99 %": 0.99, "100 %": 1.0}
    counts = []
    for of, decoupled, (c, name) in itertools.product((MAIN, *OTHERS), ("AdamW", "SignumW"), named.items()):
        coupled = COUPLED[decoupled]
        groups = _groups(_grid(stored, of, coupled, decoupled).dropna(subset=c))
        words = f"{decoupled} above {coupled} in {name}"
        for words_of_it, share in least.items():
            found = analysis.paired(groups[coupled], groups[decoupled], c, least=share)
            counts.append((of, words, words_of_it, (found[c] > found[f"{c}_coupled"]).sum(), len(found)))
    table = pd.DataFrame(counts, columns=["of", "statement", "filter", "k", "n"])
    cifar10 = table[table["of"].str.contains("CIFAR10")]
    both = [table, cifar10.assign(statement=f"{JPEG}: " + cifar10["statement"])]
    sums = pd.concat(both).groupby(["statement", "filter"], sort=False)[["k", "n"]].sum()
    return sums.apply(lambda r: f"{r['k']} of {r['n']}", axis=1).unstack()[list(least)]


def shipped_runs() -> pd.DataFrame:
    """`analysis.table` of the runs that ship, without labels, gauge-fixed metrics among the columns. Local runs are left out: the
    pages that are judged from these are every reader's."""
    results = project_folder("results")
    known = {"": store.Store(results / "none", shipped=results).histories()}
    return analysis.table(analysis.with_gauge_fixed(known)).drop(columns="label")


def _where(runs: pd.DataFrame, **fields) -> pd.DataFrame:
    """The runs with these values; None is a value."""
    kept = [runs[name].isna() if v is None else runs[name] == v for name, v in fields.items()]
    return runs[np.all(kept, axis=0)]


@cache
def _entries(profile: str, grid: str = "grid") -> pd.DataFrame:
    """The entries of one of a profile's grid files: network, data set, optimizer as `label`, the hash of the run, and that of
    the one that stands for all that take the same steps."""
    entries = store.read_grid(project_folder(f"params/{profile}/{grid}.yaml"))
    rows = [(run.arch, run.dataset, name, run.hash, same_steps(run).hash) for name, run in entries]
    return pd.DataFrame(rows, columns=["arch", "dataset", "label", "run", "same_steps"])


def _grid(stored: pd.DataFrame, of: str, *labels: str) -> pd.DataFrame:
    """A setting's stored runs, or those with these labels, from the grid of the largest profile with valid ones of all six
    optimizers. The `label` is the optimizer; a run without decay stands under both of its rule's."""
    arch, dataset = of.split(" on ")
    for profile, name in (("paper", dataset), ("laptop", dataset.replace("CIFAR10", "cifar10-jpeg"))):
        entries = _entries(profile)[["label", "run"]].drop_duplicates()
        runs = entries.merge(_where(stored, arch=arch.lower(), dataset=name), on="run")
        if _where(runs, valid=True)["label"].nunique() == 6:
            return runs[runs["label"].isin(labels)] if labels else runs
    raise NotRun


def _chapter(stored: pd.DataFrame, chapter: str, optimizers: int, **fields) -> tuple[pd.DataFrame, dict]:
    """A chapter's stored runs, with labels as `_grid`'s, and its parameters, at the paper's profile or else the laptop's: runs
    with these `fields`, its seeds, and each parameter that is one value of a field, the network and its images as they are
    unless it says otherwise, where they are of so many optimizers."""
    for profile in ("paper", "laptop"):
        p = yaml.safe_load(project_folder(f"params/{profile}/{chapter}.yaml").read_text("utf-8"))
        usual = {n: Run.model_fields[n].default for n in ("n_train", "net", "fit", "scale", "augment")}
        values = {"arch": "resnet9"} | usual | p | fields
        values = {k: v for k, v in values.items() if k in stored and not isinstance(v, list | dict)}
        first = values.pop("seed", 0)
        of = stored[stored["seed"].between(first, first + p.get("n_seeds", 1) - 1)]
        values["lr"] = np.where(of["rule"] == "sgd", p.get("lr_sgd", p["lr"]), p["lr"])
        runs = _where(of, **values)
        if runs["optimizer"].nunique() >= optimizers:
            none = runs[runs["wd"] == 0]
            both = [runs.assign(label=runs["optimizer"]), none.assign(label=none["optimizer"] + "W")]
            return pd.concat(both, ignore_index=True), p
    raise NotRun


def _by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, alike where network, data and seed are."""
    fields = ("arch", "dataset", "seed")
    return runs.assign(like=[tuple(zip(fields, of)) for of in runs[list(fields)].itertuples(index=False)])


def _groups(runs: pd.DataFrame) -> analysis.Groups:
    """Histories by label, as `analysis` takes them."""
    return runs.groupby("label")["history"].agg(list).to_dict()


def _ranks(runs: pd.DataFrame, columns: list[str], along: str = "wd") -> pd.Series:
    """`analysis.rank_correlation` of some metrics."""
    return pd.Series({c: analysis.rank_correlation(list(runs["history"]), c, along)[0] for c in columns})


def _over_start(runs: pd.DataFrame, column: str) -> pd.Series:
    """The final value of a metric over that of the untrained network."""
    return runs[column] / [h.frame[column].iloc[0] for h in runs["history"]]


def _signed(ranks: pd.Series, named: bool = True) -> str:
    return ", ".join(f"{c.upper()} {r:+.2f}" if named else f"{r:+.2f}" for c, r in ranks.items())


# ---- comparisons

# with the gauge of W fixed; NC0 is then 0, what is of M alone the same
FIXED = {"nc3": "nc3c", "nc2w": "nc2wc", "nc2m": "nc2mc"}


def _statement(says: str, found: pd.DataFrame, column: str, less: str, more: str, **how) -> Statement:
    """Of a table of two measurements a row, whose columns end with `less` and `more` for the one in which the paper has the
    metric smaller and larger."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of two zeros: no comparison
        value, fixed = (
            np.log(found[c + more].astype(float)) - np.log(found[c + less].astype(float))
            if {c + more, c + less} <= {*found}
            else np.nan
            for c in (column, FIXED.get(column, column))
        )
    gauge = "zero" if column == "nc0" else "changes" if column in FIXED else "same"
    table = {"like": found["like"], "one": found["run" + less], "other": found["run" + more]}
    return Statement(says, pd.DataFrame(table | {"value": value, "fixed": fixed}), gauge=gauge, **how)


_near = partial(_statement, within=True)  # not farther apart than a factor


def _true(says: str, like, runs, way, fixed=None, gauge: str = "changes") -> Statement:
    """Each run a comparison with itself, which goes the paper's way or not; `fixed`, whether it does with the gauge fixed, where
    that may be another thing."""
    runs, both = list(runs), (way, way if fixed is None else fixed)
    found = {"like": list(like), "one": runs, "other": [f"{run} itself" for run in runs]}
    found |= {c: np.where(np.asarray(w, bool), 1.0, -1.0) for c, w in zip(("value", "fixed"), both)}
    gauge = "same" if fixed is None else gauge
    return Statement(says, pd.DataFrame(found), gauge=gauge, ratios=False, chance=False)


def _decays(runs: pd.DataFrame, decoupled: str, best: bool = False) -> pd.DataFrame:
    """`analysis.paired` of one rule, or `paired_best`, with all that statements need."""
    groups, columns = _groups(runs), (*METRICS, "nc3c", "budget")
    two = groups.get(COUPLED[decoupled], []), groups.get(decoupled, [])
    return (analysis.paired_best if best else analysis.paired)(*two, *columns)


ACTED, HARDLY = "{}'s decay has acted (budget 1 or more)", "{}'s decay has acted little (budget under 1)"
AT_BEST = "both at their best decay"


def _above(found: pd.DataFrame, decoupled: str, columns=("nc0", "nc3"), note: str = "") -> list[Statement]:
    says = f"{decoupled} above {COUPLED[decoupled]} in "
    return [_statement(f"{says}{c.upper()}{note}", found, c, "_coupled", "") for c in columns]


def _over_coupled(runs: pd.DataFrame, decoupled: str) -> list[Statement]:
    """`_above` of pairs in which the decoupled decay has acted, of those in which it hardly has, and of the best decays."""
    found, best = _decays(runs, decoupled), _decays(runs, decoupled, best=True)
    acted = found["budget"] >= 1
    parts = {ACTED: found[acted], HARDLY: found[~acted], AT_BEST: best}
    return [s for n, of in parts.items() for s in _above(of, decoupled, note=f", {n.format(decoupled)}")]


def _pairs(runs: pd.DataFrame, along: str, *varied: str, valid: bool = True) -> pd.DataFrame:
    """All pairs of valid runs of one label that differ in a column, with `_low` the one where it is less. But for rule, decays
    and `varied` they are alike; along momentum the decay is the same, too."""
    kept = (_where(runs, valid=True) if valid else runs).drop_duplicates(["label", "same_steps"])
    kept = kept.assign(like=[analysis.like(h.run, along, *varied) for h in kept["history"]])
    unknown = kept.columns[kept.isna().all()] if len(kept) else []  # no run has them
    kept = kept.drop(columns=["history", *unknown])
    same = ["like", "label", *(["wd"] if along == "momentum" else [])]
    both = kept.merge(kept, on=same, suffixes=("_low", "_high"))
    return both[both[f"{along}_low"] < both[f"{along}_high"]]


def _falls(runs: pd.DataFrame, columns, of: str, along="wd", word="decay") -> list[Statement]:
    """Metrics that are lower where a column is larger."""
    found = _pairs(runs, along)
    return [_statement(f"{c.upper()} of {of} falls with {word}", found, c, "_high", "_low") for c in columns]


def _since(runs: pd.DataFrame, columns, share: float = 0.0) -> pd.DataFrame:
    """Metrics of each run at the end (`_end`) and where they were first measured after this share of the epochs (`_then`)."""
    frames = [h.frame[h.frame["epoch"] >= share * h.run.epochs].iloc[0] for h in runs["history"]]
    then = pd.DataFrame([{c: frame[c] for c in columns} for frame in frames], runs.index)
    ends = {f"{c}_end": runs[c] for c in columns} | {f"{c}_then": then[c] for c in columns}
    names = {"like": runs["like"], "run_end": runs["run"], "run_then": runs["run"] + " then"}
    return pd.DataFrame(names | ends)


# ---- judges


def _adamw_over_adam(stored, of=MAIN) -> Seen:
    runs = _grid(stored, of, "Adam", "AdamW")
    statements = _over_coupled(runs, "AdamW")
    return Seen(analysis.pairs_in_words(_groups(runs), "AdamW"), statements, runs)


def _over_wd(stored, of=MAIN) -> Seen:
    runs = _grid(stored, of, "SGD", "SGDW", "Signum", "SignumW")
    ranks = pd.concat([_ranks(_where(runs, label=name), ["nc0", "nc3"]) for name in ("SGD", "Signum")])
    known = f"{ranks.min():+.2f} to {ranks.max():+.2f} in {ranks.count()} of 4 cases"
    both = runs[runs["label"].isin(["SGD", "Signum"])]
    statements = [*_falls(both, ["nc0", "nc3"], "SGD and Signum"), *_over_coupled(runs, "SignumW")]
    return Seen(f"rank correlation with wd (SGD, Signum; NC0, NC3) {known}", statements, runs)


def _figure3(stored) -> Seen:
    """`_over_wd`; of all six optimizers that decay is needed, and that decoupling it does little to SGD and more to the others."""
    seen, runs = _over_wd(stored), _grid(stored, MAIN)
    best = {name: _by_seed(_decays(runs, name, best=True)) for name in COUPLED}
    sgdw, others = best["SGDW"], pd.concat([best["AdamW"], best["SignumW"]])
    says = "NC3 of SGDW close to SGD's, both at their best decay"
    near = _near(says, sgdw, "nc3", "_coupled", "", factor=CLOSE)
    says = "decoupling raises NC3 more under Adam and Signum than under SGD, at the best decays"
    more = _statement(says, others, "nc3", "_coupled", "")
    large, small = (s.found.join(of["momentum"]) for s, of in ((more, others), (near, sgdw)))
    more = _of_two_effects(more, large.merge(small, on=["like", "momentum"], suffixes=("_large", "_small")))
    both = beside_none(runs, "wd", largest=True)
    says = "{} is lower at the largest decay that fits than without, all six optimizers"
    needed = [_statement(says.format(c.upper()), both, c, "", "_none") for c in ("nc0", "nc3")]
    ratios = sgdw["nc3"] / sgdw["nc3_coupled"]
    text = f"{seen.text}; NC3 of SGDW over SGD's at the best decays: {ratios.min():.2g} to {ratios.max():.2g}"
    return Seen(text, [*seen.statements, near, more, *needed], runs)


def beside_none(runs: pd.DataFrame, by: str, largest: bool = False) -> pd.DataFrame:
    """Of each optimizer (`label`) and setting (`like`) the valid run with decay that has the smallest or the largest of a column,
    and in the same row the one without decay (`_none`). Two that take the same steps are one."""
    kept = _where(runs, valid=True)
    chosen = kept[kept["wd"] > 0].sort_values(by, ascending=not largest).drop_duplicates(["like", "label"])
    chosen = chosen.drop_duplicates("same_steps")
    return chosen.merge(kept[kept["wd"] == 0], on=["like", "label"], suffixes=("", "_none"))


def _follows(stored, of=MAIN, column="nc3", by_lr=False) -> Seen:
    """Of two runs that are alike, the one with the larger NC0 has the larger metric; and NC0 orders NC3 where it does not order
    this metric, rather than the other way round."""
    runs, name = _grid(stored, of), column.upper()
    fits = analysis.regression(list(runs["history"]), column)
    fits = fits.drop(index="all") if by_lr else fits.loc[["all"]]
    text = f"slope {', '.join(f'{s:+.3f}' for s in fits['beta'])}, R² {', '.join(f'{r:.2f}' for r in fits['r2'])}"
    text += f" at lr {', '.join(label[3:] for label in fits.index)}" if by_lr else ""
    found = _pairs(runs.assign(label=""), "nc0", "momentum", *([] if by_lr else ["lr"]))
    where = "at one learning rate" if by_lr else "over all learning rates"
    says = f"{name} is larger where NC0 is, {where}"
    statements = [_statement(says, found, column, "_low", "_high", ratios=False)]
    if column != "nc3":
        nc3, ours = _statement("", found, "nc3", "_low", "_high").found, statements[0].found
        less = {c: np.sign(nc3[c]) - np.sign(ours[c]) for c in ("value", "fixed")}
        less = ours.assign(**{c: v.where(v != 0) for c, v in less.items()})
        says = f"NC0 orders NC3 where it does not order {name}"
        statements.append(Statement(says, less, gauge="changes", ratios=False))
    return Seen(text, statements, runs)


def _heat_map(stored) -> Seen:
    runs, columns = _where(_grid(stored, MAIN, "SGD"), lr=0.0679), ["nc0", "nc2", "nc3"]
    runs = _where(runs, seed=runs["seed"].min())
    decayed = runs[runs["wd"] > 0]
    momentum, decay = _ranks(decayed, columns, "momentum"), _ranks(runs, columns)
    text = f"at lr 0.0679 (the paper's text points to 0.001, for longer): rank correlation with momentum {_signed(momentum)}; with wd {_signed(decay)}"
    falls = _falls(decayed, columns, "SGD", "momentum", "momentum") + _falls(runs, columns, "SGD")
    return Seen(text, [*falls, *(_more_at_larger_decay(runs, c) for c in columns)], runs)


def _more_at_larger_decay(runs: pd.DataFrame, column: str) -> Statement:
    """What two momenta differ by at one decay against what they differ by at a smaller one."""
    found = _pairs(runs[runs["wd"] > 0], "momentum").reset_index(drop=True)
    says = f"momentum lowers {column.upper()} more at a larger decay"
    statement = _statement(says, found, column, "_high", "_low")
    effects = statement.found.join(found[["wd", "momentum_low", "momentum_high"]])
    pair = ["like", "momentum_low", "momentum_high"]
    both = effects.merge(effects, on=pair, suffixes=("_small", "_large")).query("wd_small < wd_large")
    return _of_two_effects(statement, both)


def _of_two_effects(statement: Statement, both: pd.DataFrame) -> Statement:
    """The statement that one of two effects, each of two runs, is the larger: `_large` and `_small` in what was `found`."""
    table = {"like": both["like"]}
    for run in ("one", "other"):
        table |= {run: both[f"{run}_large"], f"{run}_before": both[f"{run}_small"]}
    table |= {c: both[f"{c}_large"] - both[f"{c}_small"] for c in ("value", "fixed")}
    return replace(statement, found=pd.DataFrame(table))


def _training_curves(stored) -> Seen:
    runs, _ = _chapter(stored, "03_adamw", 6, diverged_epoch=None)
    ends = runs.groupby("label")[METRICS].mean()
    above = pd.DataFrame([ends.loc[d] > ends.loc[c] for d, c in COUPLED.items()])
    text = ", ".join(f"{c.upper()} {n} of 3" for c, n in above.sum().items())
    pair = pd.concat([_decays(runs, name) for name in COUPLED])
    by_seed, is_low = _by_seed(runs), runs["label"].isin(["SGD", "Adam"])
    lowest = by_seed[is_low].merge(by_seed[~is_low], on="like", suffixes=("_low", "_high"))
    columns = ["nc0", "nc3", "nc3c"]
    late = _since(runs[runs["label"].isin(COUPLED)], columns, 2 / 3)
    signum = _since(_where(runs, label="Signum"), columns, 2 / 3)
    statements = [
        _statement(f"decoupled above coupled in {c.upper()}", pair, c, "_coupled", "") for c in METRICS
    ]
    for c in ("nc0", "nc3"):
        name, decoupled = c.upper(), ", ".join(COUPLED)
        statements += [
            _statement(f"SGD and Adam end with the lowest {name}", lowest, c, "_low", "_high"),
            _near(
                f"{name} of {decoupled} has settled in the last third", late, c, "_then", "_end", factor=STILL
            ),
            _statement(f"{name} of Signum still falls in the last third", signum, c, "_end", "_then"),
        ]
    return Seen(f"decoupled above coupled: {text} rules", statements, runs)


def _smallest_of_w(stored) -> Seen:
    names = ["SGD", "Adam", "Signum", "AdamW", "SignumW"]
    runs = _chapter(stored, "03_adamw", 6, diverged_epoch=None)[0].query("label != 'SGDW'")
    change = _over_start(runs, "w_sv_min").groupby(runs["label"]).mean()[names]
    text = ", ".join(f"{name} {factor:.2g}" for name, factor in change.items())
    found, grows = _since(runs, ["w_sv_min"]), runs["label"].isin(["AdamW", "SignumW"])
    ways = (
        ("grows under AdamW and SignumW", found[grows], "_then", "_end"),
        ("falls under SGD, Adam and Signum", found[~grows], "_end", "_then"),
    )
    statements = [
        _statement(f"W's smallest singular value {way}", of, "w_sv_min", *ends) for way, of, *ends in ways
    ]
    # that of W with its mean row taken off is 0
    statements = [replace(s, gauge="zero") for s in statements]
    of_m, says = (
        _since(runs[grows], ["m_sv_mean"]),
        "the mean of M's nonzero singular values grows under AdamW and SignumW",
    )
    statements.append(_statement(says, of_m, "m_sv_mean", "_then", "_end"))
    return Seen(f"smallest singular value of W, end over start: {text}", statements, runs)


def _signumw_grows(stored) -> Seen:
    runs = _where(_chapter(stored, "03_adamw", 6, diverged_epoch=None)[0], label="SignumW")
    smallest, w, m = (_over_start(runs, c).mean() for c in ("w_sv_min", "w_sv_mean", "m_sv_mean"))
    text = f"SignumW, end over start: smallest of W {smallest:.2g}, others {w:.2g}; of M {m:.2g}"
    names = {
        "w_sv_min": "the smallest singular value of W",
        "w_sv_mean": "the mean of W's other singular values",
        "m_sv_mean": "the mean of M's nonzero singular values",
    }
    found = _since(runs, names)
    gauge = {"w_sv_min": "zero", "w_sv_mean": "not stored", "m_sv_mean": "same"}
    grow = [
        replace(_statement(f"SignumW: {name} grows", found, c, "_then", "_end"), gauge=gauge[c])
        for c, name in names.items()
    ]
    return Seen(text, grow, runs)


def _interpolation(stored) -> Seen:
    runs = _where(_chapter(stored, "05_interpolation", 3, rule="adam")[0], valid=True)
    means = runs.groupby("coupled_wd", as_index=False)[["nc0", "nc2", "nc3", "test_acc"]].mean()
    ranks = means.corr("spearman").loc["coupled_wd", ["nc0", "nc2", "nc3"]]
    spread = means["test_acc"].max() - means["test_acc"].min()
    text = f"rank correlation with the coupled share {_signed(ranks)}; test accuracy varies by {100 * spread:.1f} points"
    runs = runs.assign(label="")
    found = _pairs(runs, "coupled_wd")
    stays = _near("accuracy stays", found, "test_acc", "_low", "_high", factor=ACCURACY)
    falls = _falls(runs, ["nc0", "nc2", "nc3"], "the mixed rule", "coupled_wd", "the coupled share")
    return Seen(text, [*falls, stays], runs)


def _sign_descent(stored) -> Seen:
    runs = _where(stored, dataset="separable", arch="mlp", schedule="constant")
    own = _where(runs, rule="signum", momentum=0)
    if own["optimizer"].nunique() < 2:
        raise NotRun
    found = _since(own, ["nc0"], 2 / 3).assign(optimizer=own["optimizer"])
    found["nc0_peak"] = [h.frame["nc0"].max() for h in own["history"]]
    found["nc0_start"] = [h.frame["nc0"].iloc[0] for h in own["history"]]
    found = found.assign(run_peak=own["run"] + " peak", run_start=own["run"] + " start")
    coupled, decoupled = (_where(found, optimizer=name) for name in ("Signum", "SignumW"))
    moves = decoupled["nc0_end"] / decoupled["nc0_then"] - 1
    means = found.groupby("optimizer")[["nc0_start", "nc0_peak", "nc0_end"]].mean()
    means = means.set_axis(["SignGD", "SignGDW"])
    words = [f"{name} {a:.2g}, at most {b:.2g}, ends at {c:.2g}" for name, a, b, c in means.itertuples()]
    wds = ", ".join(f"{wd:g}" for wd in sorted(set(own["wd"])))
    text = f"NC0, mean over decays {wds}: {'; '.join(words)}, {100 * moves.mean():+.0f} % in the last third"
    # by Theorem 3.3 a run whose decay has hardly acted is far from where it settles
    acted = decoupled[own["budget"].reindex(decoupled.index) >= 1]
    settles = {"why": "" if len(acted) else "no run's decay has acted (budget 1 or more)"}
    statements = [
        # no curve lies above its peak, so that no even split is to be expected
        _statement(
            "NC0 of SignGD rises first", coupled, "nc0", "_start", "_peak", factor=STILL, chance=False
        ),
        _statement("NC0 of SignGD then falls", coupled, "nc0", "_end", "_peak", factor=STILL, chance=False),
        _near("NC0 of SignGDW does not fall back", decoupled, "nc0", "_end", "_peak", factor=STILL),
        _near(
            "NC0 of SignGDW settles in the last third", acted, "nc0", "_then", "_end", factor=STILL, **settles
        ),
    ]
    return Seen(text, statements, runs)


def _ufm(stored) -> Seen:
    runs = _where(stored, arch="ufm", width=64)
    if runs.empty:
        raise NotRun
    return ufm(runs)


def ufm(runs: pd.DataFrame) -> Seen:
    """Figure 15, of the unconstrained feature model's runs (`analysis.table`): those with decay and 100 % training accuracy that
    are `not_crushed`.

    Its "SGDMW" is judged as SGD, as the authors' released code uses the name; SGDW is in the text.
    """
    runs = not_crushed(_where(runs, train_acc=1, valid=True).query("wd > 0"))
    if not {"Adam", "AdamW", "SGD"} <= set(runs["optimizer"]):
        raise NotRun("runs with decay and 100 % training accuracy are not of all optimizers")
    medians = runs.groupby("optimizer")[["nc0", "nc3"]].median()
    factors = (medians.loc["AdamW"] / medians.drop(index="AdamW")).unstack()
    text = ", ".join(f"{name} {c.upper()} {factor:.2g} ×" for (c, name), factor in factors.items())
    statements = []
    for name, c in itertools.product(("Adam", "SGD"), ("nc0", "nc3")):
        of_two = (_where(runs, optimizer=of) for of in ("AdamW", name))
        both = pd.merge(*of_two, on="like", suffixes=("", "_other"))
        says = f"{c.upper()} of AdamW at least {MUCH:g} times that of {name}, at any two decays"
        statements.append(_statement(says, both, c, "_other", "", factor=MUCH, chance=False))
    return Seen(f"median AdamW over {text}", statements, runs)


def not_crushed(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the unconstrained feature model below the decay from which zero is the only minimiser, 1 / sqrt(K N): with
    momentum SGDW's is (1 - momentum) times as effective. AdamW, which does not minimise such a loss, has none."""
    effective = runs["wd"] * np.where(runs["optimizer"] == "SGDW", 1 - runs["momentum"], 1.0)
    classes = np.array([h.info["n_classes"] for h in runs["history"]])
    return runs[(runs["optimizer"] == "AdamW") | (effective < 1 / np.sqrt(classes * runs["images"]))]


def _more_epochs(stored) -> Seen:
    runs, p = _chapter(stored, "13_more_epochs", 2, rule="adam")
    factors = of_more_epochs(runs, stored, p["epochs_before"]).query("optimizer == 'AdamW'")
    if factors.empty:
        raise NotRun("no run of AdamW is valid at both lengths")
    text = analysis.pairs_in_words(_groups(runs), "AdamW")
    changes = factors[["nc0", "nc3"]]
    text += f" after {p['epochs'] // p['epochs_before']} times the epochs, which changed AdamW's NC0 and NC3 by factors of {changes.min(axis=None):.2g} to "
    text += f"{changes.max(axis=None):.2g}"
    stays = [
        _near(f"longer training hardly moves {c.upper()} of AdamW", factors, c, "_before", "", factor=CLOSE)
        for c in ("nc0", "nc3")
    ]
    return Seen(text, [*_above(_decays(runs, "AdamW"), "AdamW"), *stays, _fits_by_a_third(runs)], runs)


def of_more_epochs(longer: pd.DataFrame, shorter: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """The valid longer runs of which the same run, but for these `epochs`, is there and valid, too; in place of each metric its
    factor, after the longer training over after the shorter one (both tables as `analysis.table`)."""
    longer, shorter = _where(longer, valid=True), _where(shorter, valid=True).drop_duplicates("run")
    before = [h.run.model_copy(update={"epochs": epochs}).hash for h in longer["history"]]
    longer = longer.assign(before=pd.Series(before, longer.index, dtype="str"))
    both = longer.merge(shorter, left_on="before", right_on="run", suffixes=("", "_before"))
    columns = [c for c in (*METRICS, "nc3c") if f"{c}_before" in both]
    factors = {c: both[c] / both[f"{c}_before"] for c in columns}
    return both.assign(**factors, **{f"{c}_before": 1.0 for c in columns})


def _fits_by_a_third(runs: pd.DataFrame) -> Statement:
    """700 of 2,000 epochs; the paper's decays of at most 0.05 have a budget of at most 0.05 * 0.0005 * 469 steps an epoch *
    (666 + 66.7 + 6.68) epochs' worth of the first learning rate: 8.7."""
    of = runs[(runs["label"] == "AdamW") & (runs["budget"] <= 8.7)]
    early = [h.frame[h.frame["epoch"] <= 0.35 * h.run.epochs]["train_acc"].max() == 1 for h in of["history"]]
    says = "AdamW at small decay reaches 100 % training accuracy in 35 % of the epochs"
    return _true(says, of["like"], of["run"], early)


def _more_epochs_of_sgd(stored) -> Seen:
    runs, p = _chapter(stored, "13_more_epochs", 1, rule="sgd")
    runs = _where(runs, label="SGD")
    law = runs["history"].map(lambda h: exact_law(h)[-1])
    lawful, kept = law > 1e-4, _where(runs, valid=True)
    error = (_over_start(runs, "nc0") / law - 1).abs()[lawful].max()
    columns = ["nc0", "nc2", "nc3"]
    ranks = kept[columns].corrwith(law, method="spearman")
    text = f"NC0 by the exact law within {error:.1g} in the {lawful.sum()} runs where it ends above 1e-4 of its start; the more "
    text += f"decay has acted, the lower NC0, NC2, NC3: rank correlation {_signed(ranks, False)} over {len(kept)} valid runs"
    found = _pairs(runs.assign(acted=-law), "acted", "momentum")
    says = "{} is lower where more decay has acted"
    trend = [_statement(says.format(c.upper()), found, c, "_high", "_low") for c in columns]
    then = of_more_epochs(runs, stored, p["epochs_before"])
    falls = [_statement(f"longer training lowers {c.upper()}", then, c, "", "_before") for c in columns]
    return Seen(text, trend + falls, runs)


def by_nc4(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The runs of which the paper's NC4 is known (Eq. 11: test images; its code: no bias) and its column, `nc4_test`; where of
    none, all runs and `nc4`, of the training images, with bias."""
    known = runs["nc4_test"].notna() if "nc4_test" in runs else pd.Series(False, runs.index)
    return (runs[known], "nc4_test") if known.any() else (runs, "nc4")


def _near_one(kept: pd.DataFrame, column: str, images: str) -> Statement:
    """NC4 above 0.99, as a threshold on 1 - NC4 that may be moved."""
    with np.errstate(divide="ignore"):
        value = -np.log(1 - kept[column].astype(float))
    found = {"like": kept["like"], "one": kept["run"], "other": kept["run"] + " itself", "value": value}
    says = f"NC4 of the {images} images is above 0.99 in a valid run"
    table = pd.DataFrame(found).assign(fixed=value)
    how = {"ratios": False, "chance": False, "moved": "with 1 - NC4 under 1/{:,.0f}"}
    return Statement(says, table, factor=100, **how)


def nc4(runs: pd.DataFrame) -> Seen:
    """Figure 44, of one setting's runs (`analysis.table`)."""
    kept, column = by_nc4(_where(runs, valid=True).drop_duplicates("same_steps"))
    ranks = kept[METRICS[1:]].corrwith(kept[column], method="spearman")
    images = {"nc4_test": "test", "nc4": "training"}
    above = ", ".join(f"{x:g} in {100 * (kept[column] > x).mean():.0f} %" for x in (0.9, 0.95, 0.99))
    text = f"NC4 of the {images[column]} images above {above} of {len(kept)} valid runs; rank correlation with NC1, NC2, NC3 "
    # by the paper's definition, and by this book's where the paper's is known
    statements = [_near_one(kept, c, images[c]) for c in dict.fromkeys([column, "nc4"])]
    for c in METRICS[1:]:
        # of one setting and seed, where there are enough runs for a correlation and an order of NC4
        groups = [(k, g) for k, g in kept.groupby("like") if len(g) >= 8 and g[column].nunique() > 1]
        centred = FIXED.get(c, c) if FIXED.get(c) in kept else c  # NC4 is the same with the gauge fixed
        of_each = [(k, *(g[x].corr(g[column], "spearman") for x in (c, centred))) for k, g in groups]
        likes, known, fixed = zip(*of_each, strict=True) if of_each else ((), (), ())
        says = f"NC4 does not follow {c.upper()} (rank correlation under {UNRELATED})"
        ways = [np.abs(of) < UNRELATED for of in (known, fixed)]
        statements.append(_true(says, likes, map(str, likes), ways[0], ways[1] if c in FIXED else None))
    return Seen(text + _signed(ranks, False), statements, runs)


def vit(runs: pd.DataFrame) -> Seen:
    """Figure 45, of the runs of SGD, Adam and AdamW (`analysis.table`)."""
    missing = {"SGD", "Adam", "AdamW"} - set(_where(runs, valid=True)["label"])
    if missing:
        raise NotRun(f"no run of {' and '.join(sorted(missing))} is valid")
    text = analysis.pairs_in_words(_groups(runs), "AdamW")  # of this the paper says nothing
    falls = _ranks(_where(runs, label="SGD"), ["nc0", "nc3"])
    turns, words = {"nc0": [], "nc3": [], "nc3c": []}, []
    for name, (c, sign) in itertools.product(("Adam", "AdamW"), (("nc0", 1), ("nc3", -1), ("nc3c", -1))):
        means = _where(runs, label=name, valid=True).groupby("wd")[c].mean()
        turn = (sign * means).argmax()  # a maximum of NC0, a minimum of NC3
        turns[c].append(0 < turn < len(means) - 1)
        words.append(f"{c.upper()} of {name} {' … '.join(f'{means.iloc[i]:.2g}' for i in (0, turn, -1))}")
    text += f"; rank correlation of SGD's NC0 and NC3 with wd {falls['nc0']:+.2f} and {falls['nc3']:+.2f}"
    text += f"; over wd (first, extreme, last): {', '.join(words)}"
    statements = _falls(_where(runs, label="SGD"), ["nc0", "nc3"], "SGD")
    for c, fixed, ways, gauge in (
        ("nc0", "nc0", "rises with decay, then falls", "zero"),
        ("nc3", "nc3c", "falls with decay, then rises", "changes"),
    ):
        says, two = f"{c.upper()} of Adam and AdamW {ways}", ["Adam", "AdamW"]
        statements.append(_true(says, ["one seed"] * 2, two, turns[c], turns[fixed], gauge))
    three = runs[runs["label"].isin(["SGD", "Adam", "AdamW"])].sort_values("wd")
    strongest = three.drop_duplicates("label", keep="last").assign(like="one seed")
    for c, name in (("train_acc", "training"), ("test_acc", "test")):
        best = three.sort_values(c).drop_duplicates("label", keep="last")
        both = strongest.merge(best, on="label", suffixes=("", "_best"))
        says = f"{name} accuracy at the largest decay is well below that at the best one (Figure 45c)"
        how = {"factor": ACCURACY, "chance": False}
        statements.append(_statement(says, both, c, "", "_best", **how))
    return Seen(text, statements, runs)


def _together(stored, judge) -> Seen:
    """What a judge of one setting sees in the six, in one."""
    seen = [judge(stored, of=of) for of in (MAIN, *OTHERS)]
    by_words: dict[str, list[Statement]] = {}
    for statement in itertools.chain.from_iterable(s.statements for s in seen):
        by_words.setdefault(statement.says, []).append(statement)
    pooled = [
        replace(all_[0], found=pd.concat([s.found for s in all_], ignore_index=True), pooled=True)
        for all_ in by_words.values()
    ]
    return Seen("", pooled, pd.concat([s.runs for s in seen]))


def _imagenet(stored, columns) -> Seen:
    runs, p = _chapter(stored, "16_imagenet", 2, arch="resnet50", rule="adam")
    text = analysis.pairs_in_words(_groups(runs), "AdamW", columns)
    if p["dataset"] == "imagenet":
        return Seen(text, _above(_decays(runs, "AdamW"), "AdamW", columns), runs)
    small = f"a narrow ResNet50 on {runs['images'].iloc[0]:,} small images"
    return Seen(f"not on ImageNet; {small}: {text}", [], runs.head(0))  # shown, and not judged


def _order_of_the_six(stored) -> Seen:
    seen = _as_in_table1(_chapter(stored, "03_adamw", 6, diverged_epoch=None)[0])
    sgdw = _where(seen.runs, label="SGDW")
    (law,) = {round(100 * (exact_law(h)[-1] - 1), 1) for h in sgdw["history"]}
    measured = 100 * (_over_start(sgdw, "nc0").mean() - 1)
    others = pd.concat([sgdw, _where(_grid(stored, MAIN, "SGDW"), diverged_epoch=None).query("wd > 0")])
    found = _since(others, ["nc0"]).assign(law=[exact_law(h)[-1] for h in others["history"]])
    found = found.assign(nc0_then=found["nc0_then"] * found["law"]).query("law > 1e-4")
    says = "SGDW's NC0 is that of the law which gives the paper's change"
    lawful = _near(says, found, "nc0", "_then", "_end", factor=ACCURACY)
    text = f"{seen.text}; SGDW's NC0 {measured:+.1f} % (law {law:+.1f} %, paper {published.TABLE1_CHANGE['SGDW']['nc0']:+.1f} %)"
    return Seen(text, [*seen.statements, lawful], seen.runs)


def _as_in_table1(runs: pd.DataFrame) -> Seen:
    """Of any two of the six optimizers the one with the larger value in the paper's Table 1 has the larger one here."""
    theirs = pd.DataFrame(published.TABLE1).T
    ranks = runs.groupby("label")[METRICS].mean().corrwith(theirs, method="spearman")
    by_seed = _by_seed(runs)
    both = by_seed.merge(by_seed, on="like", suffixes=("_low", "_high"))
    statements = []
    for c in METRICS:
        ordered = both[both["label_low"].map(theirs[c]) < both["label_high"].map(theirs[c])]
        statements.append(_statement(f"{c.upper()} in the order of Table 1's", ordered, c, "_low", "_high"))
    return Seen(f"rank correlation with the paper's six values {_signed(ranks)}", statements, runs)


def table1_by_its_protocol(stored) -> Seen:
    """Table 1's six runs with the paper's images, epochs, batches and rates: all but the width."""
    paper = {name: published.TABLE1_SETTING[name] for name in ("wd", "momentum")}
    runs = _entries("protocol")[["label", "run"]].merge(_where(stored, **paper), on="run")
    if runs["label"].nunique() < 6:
        raise NotRun(f"{runs['label'].nunique()} of the six runs are stored")
    ratios = runs["nc0"] / runs["label"].map({name: row["nc0"] for name, row in published.TABLE1.items()})
    words = ", ".join(f"{name} {ratio:.2g}" for name, ratio in zip(runs["label"], ratios))
    seen = _as_in_table1(runs)
    return replace(seen, text=f"{seen.text}; NC0 divided by the paper's: {words}")


def table1_at_its_width(stored) -> Seen:
    """Table 1's runs with the paper's width, too, from the initial weights that it points to: value by value."""
    paper = {name: published.TABLE1_SETTING[name] for name in ("wd", "momentum")}
    runs = _entries("protocol", "width64")[["label", "run"]].merge(_where(stored, **paper), on="run")
    if runs.empty:
        raise NotRun("0 of the six runs are stored")
    theirs, statements, words = pd.DataFrame(published.TABLE1).T, [], {}
    for c in METRICS:
        found = _by_seed(runs).assign(run_paper="the paper's " + runs["label"])
        found[f"{c}_paper"] = runs["label"].map(theirs[c])
        says = f"{c.upper()} is near Table 1's"
        near = _near(says, found, c, "_paper", "", factor=CLOSE)
        statements.append(replace(near, gauge="the paper's is not known"))
        words[c] = [f"{ratio:.2f}" for ratio in found[c] / found[f"{c}_paper"]]
    of = ", ".join(f"{c.upper()} {' and '.join(ratios)}" for c, ratios in words.items())
    return Seen(f"values here divided by the paper's, {' and '.join(runs['label'])}: {of}", statements, runs)


def _best(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of each optimizer's best run, by label."""
    return analysis.table({name: [h] for name, h in analysis.best(_groups(runs)).items()}).set_index("label")


def _best_runs(stored) -> Seen:
    runs = _grid(stored, MAIN)
    best = _best(runs).loc[list(published.TABLE2)]
    claims = {f"the smallest {c.upper()}": best[c].idxmin() == "AdamW" for c in ("nc1", "nc2")}
    claims |= {f"the largest {c.upper()}": best[c].idxmax() == "AdamW" for c in ("nc0", "nc3")}
    text = ", ".join(f"{claim}: {'yes' if true else 'no'}" for claim, true in claims.items())
    each = pd.concat([_by_seed(_best(of)) for _, of in runs.groupby("seed")])
    adamw, others = each.loc[["AdamW"]], each.loc[[n for n in published.TABLE2 if n != "AdamW"]]
    both = adamw.merge(others, on="like", suffixes=("", "_other"))
    ways = {"below": (("nc1", "nc2"), "", "_other"), "above": (("nc0", "nc3"), "_other", "")}
    statements = [
        _statement(f"{c.upper()} of AdamW's best run {way} that of the others", both, c, *ends)
        for way, (columns, *ends) in ways.items()
        for c in columns
    ]
    return Seen(f"AdamW's best run has {text}", statements, runs)


def _counts(stored) -> Seen:
    settings = {of: _grid(stored, of) for of in (MAIN, *OTHERS)}
    runs, entries = pd.concat(settings.values()), _entries("paper")
    once, n = runs.drop_duplicates("same_steps"), len(entries.drop_duplicates(["arch", "dataset", "label"]))
    distinct, different = entries["run"].nunique(), entries["same_steps"].nunique()
    text = f"{len(entries):,} entries in {n} settings, {distinct:,} distinct, {different:,} of which differ in mathematics; of the "
    text += f"{len(once)} run here, with other decays, {100 * once['valid'].mean():.0f} % pass the filter (paper: 64 %)"
    paper = 2500 / 3888
    shares = runs.groupby(["arch", "dataset", "label"])["valid"].mean()
    likes = [(("arch", arch), ("dataset", dataset)) for arch, dataset, _ in shares.index]
    names = [" ".join(name) for name in shares.index]
    found = {"like": likes, "one": names, "other": "paper", "value": np.log(shares.to_numpy() / paper)}
    table = pd.DataFrame(found).assign(fixed=lambda t: t["value"])
    says = "the share of valid runs of a setting is near that of all the paper's runs, 64 %"
    return Seen(text, [Statement(says, table, factor=CLOSE, within=True)], once)


def _hyperparameters(stored) -> Seen:
    runs = _grid(stored, MAIN)
    ours, theirs = _best(runs)["wd"], pd.DataFrame(published.TABLE4).loc[2]
    stronger, paper = (sum(wd[d] > wd[c] for d, c in COUPLED.items()) for wd in (ours, theirs))
    text = f"{(ours > 0).sum()} of 6 best runs have weight decay; larger under the decoupled optimizer for {stronger} of 3 rules"
    both = beside_none(runs, "nc3")
    too_large = "the grid gives decoupled decay larger values, so that its best one says little"
    statements = [
        # the best of several decays is lower by chance, too
        _statement("NC3 is lower at the best decay than without", both, "nc3", "", "_none", chance=False),
        Statement("the best decay is larger where decoupled", why=too_large),
    ]
    return Seen(f"{text} (paper: {paper})", statements, runs)


def _table5(stored) -> Seen:
    runs, paper = _grid(stored, MAIN), published.TABLE5
    fits, fixed = (analysis.regression(list(runs["history"]), c) for c in ("nc3", "nc3c"))
    fits = fits.merge(paper, left_index=True, right_index=True, suffixes=("", "_paper"))
    positive = fits["ci_low"] > 0
    meets = (fits["ci_low"] <= fits["ci_high_paper"]) & (fits["ci_low_paper"] <= fits["ci_high"])
    text = f"slope positive in {positive.sum()} of {len(fits)} rows, its interval meets the paper's in {meets.sum()}; R² "
    text += f"{fits['r2'].min():.2f} to {fits['r2'].max():.2f} (paper: 0.73 to 0.84)"
    statements = []
    for c, says in (("beta", "the slope"), ("r2", "R²")):
        # a slope that is not positive is no factor away
        values = [
            np.log(of[c].where(of[c] > 0).to_numpy() / fits[f"{c}_paper"].to_numpy())
            for of in (fits, fixed.loc[fits.index])
        ]
        one_setting = [tuple(zip(("arch", "dataset"), MAIN.split(" on ")))] * len(fits)
        table = pd.DataFrame({"like": one_setting, "one": fits.index, "other": "paper " + fits.index})
        table["value"], table["fixed"] = (np.nan_to_num(v, nan=np.inf) for v in values)
        says += " of NC3 on log NC0 is close to the paper's"
        statements.append(Statement(says, table, CLOSE, True, gauge="changes"))
    return Seen(text, statements, runs)


# ---- the claims

ABOVE = "AdamW ends above Adam in NC0 and NC3"
OVER_WD = "more decay lowers NC0 and NC3 of SGD and Signum; SignumW stays above Signum"
LESS = "follows NC0 less than NC3 does, a trend is visible"
IN_EACH_SETTING = {
    ABOVE: _adamw_over_adam,
    OVER_WD: _over_wd,
    f"NC1 {LESS}": partial(_follows, column="nc1"),
    f"NC2 {LESS}": partial(_follows, column="nc2"),
    "NC3 rises with log NC0": _follows,
}
TOGETHER = "the six settings together: "
JPEG = "CIFAR-10 (a copy as JPEG files)"
# fmt: off
CLAIMS = pd.DataFrame(columns=["item", "page", "says", "look"], data=[
    ("Figure 1", "03_adamw", f"{ABOVE} at every weight decay", _adamw_over_adam),
    ("Figures 2 and 9", "12_regression", "NC3 rises with log NC0 at each learning rate", partial(_follows, by_lr=True)),
    ("Figure 3", "02_weight_decay", f"{OVER_WD}; SGDW stays closer to SGD; decay is necessary", _figure3),
    ("Figure 4", "02_weight_decay", "momentum and decay both lower NC0, NC2, NC3 of SGD, momentum more at larger decay", _heat_map),
    ("Figure 5", "03_adamw", "coupled decay ends lower than decoupled, which saturates early; Signum is still falling", _training_curves),
    ("Figure 6", "03_adamw", "W's smallest singular value grows under AdamW and SignumW, as M's nonzero ones do, and falls under coupled decay", _smallest_of_w),
    ("Figure 7", "05_interpolation", "from AdamW to Adam NC0, NC2, NC3 fall, accuracy stays", _interpolation),
    ("Figure 8", "09_sign_descent", "NC0 rises and falls under SignGD, settles above zero under SignGDW", _sign_descent),
    ("Figure 10", "12_regression", "NC3 rises with log NC0 over all learning rates", _follows),
    ("Figure 11", "12_regression", f"NC1 {LESS}", partial(_follows, column="nc1", by_lr=True)),
    ("Figure 12", "12_regression", f"NC2 {LESS}", partial(_follows, column="nc2", by_lr=True)),
    ("Figure 13", "13_more_epochs", "longer training hardly moves AdamW's NC0 and NC3; it stays above Adam and fits early", _more_epochs),
    ("Figure 14", "13_more_epochs", "longer SGD: all fall, the trend with decay is unchanged", _more_epochs_of_sgd),
    ("Figure 15", "10_ufm", "UFM: AdamW's NC0 and NC3 are 10 times Adam's and SGDMW's (SGD with momentum)", _ufm),
    ("Figure 16", "03_adamw", "SignumW: singular values of W and M grow", _signumw_grows),
    ("Figure 17", "16_imagenet", f"ImageNet, ResNet50: {ABOVE}", partial(_imagenet, columns=("nc0", "nc3"))),
    ("Figure 18", "16_imagenet", "ImageNet, ResNet50: NC1 and NC2 over decay", partial(_imagenet, columns=("nc1", "nc2"))),
    *((f"Figure {i}", "14_six_settings", f"{of.replace('CIFAR10', JPEG)}: {says}", partial(IN_EACH_SETTING[says], of=of))
      for i, (of, says) in enumerate(itertools.product(OTHERS, IN_EACH_SETTING), 19)),
    *((f"Figures {', '.join(map(str, (first, *range(19 + i, 44, 5))))}", "14_six_settings", f"{TOGETHER}{says}", partial(_together, judge=judge))
      for i, (first, (says, judge)) in enumerate(zip((1, 3, 11, 12, 10), IN_EACH_SETTING.items()))),
    ("Figure 44", "11_nc_in_practice", "NC4 is satisfied wherever training accuracy is, largely uncorrelated with NC1 to NC3", lambda stored: nc4(_grid(stored, MAIN))),
    ("Figure 45", "15_vit", f"vision transformer, {JPEG}: SGD's NC0 and NC3 fall with decay; Adam's and AdamW's NC0 rises, then falls, "
     "their NC3 is U-shaped; accuracy degrades with too much decay", lambda stored: vit(_chapter(stored, "15_vit", 3, arch="vit")[0])),
    ("Table 1", "03_adamw", "the six optimizers at the end of training; SGDW's NC0 -68.9 %", _order_of_the_six),
    ("Table 1", "03_adamw", "the same with the paper's images and epochs and inferred rates, at width 8", table1_by_its_protocol),
    ("Table 1", "03_adamw", "the same at the paper's width, from the initial weights it points to: every value is near the paper's", table1_at_its_width),
    ("Table 2", "11_nc_in_practice", "best runs: AdamW has the smallest NC1 and NC2, the largest NC0 and NC3", _best_runs),
    ("Table 3", "14_six_settings", "36 settings, 3,888 runs, 2,500 of them valid", _counts),
    ("Table 4", "11_nc_in_practice", "the best runs' hyper-parameters: with decay, larger where decoupled", _hyperparameters),
    ("Table 5", "12_regression", "NC3 on log NC0: slopes 0.14 to 0.20, R² 0.73 to 0.84", _table5),
])
# fmt: on


def _family(item: str, says: str) -> str:
    """Holm's families: what is one figure in the main text and five in the appendix is one; any other row is its own."""
    if says.startswith(TOGETHER):
        return TOGETHER
    as_in = {"Figure 1": ABOVE, "Figure 3": OVER_WD, "Figure 10": list(IN_EACH_SETTING)[-1]}
    return as_in.get(item) or next((k for k in IN_EACH_SETTING if says.endswith(f": {k}")), f"{item}: {says}")


CLAIMS["family"] = [_family(r.item, r.says) for r in CLAIMS.itertuples()]
