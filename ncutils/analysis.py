"""Stored runs -> numbers: what a grid has stored, like compared with like, rank correlations, NC3 regressed on NC0."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ncutils import store
from ncutils.optimizers import COUPLED, OPTIMIZERS
from ncutils.runs import History, Run
from ncutils.store import Store, read_grid

Groups = dict[str, list[History]]  # a label, such as an optimizer's name -> its runs


def stored_grid(path, runs: Store | None = None, **fields) -> tuple[Groups, list[Run]]:
    """The stored runs of a grid file by optimizer, in the paper's order, and those that are missing.

    `fields` keeps only runs with these values (arch="resnet9", ...). At wd 0 a run counts for both its optimizers.
    """
    runs = runs or Store()
    entries = [
        (name, run) for name, run in read_grid(path) if all(getattr(run, f) == v for f, v in fields.items())
    ]
    stored = {run: runs.get(run) for run in dict.fromkeys(run for _, run in entries)}
    groups: Groups = {name: [] for name in OPTIMIZERS}
    for name, run in dict.fromkeys(entries):
        if history := stored[run]:
            groups[name].append(history)
    return {name: runs for name, runs in groups.items() if runs}, [run for run, h in stored.items() if not h]


def table(groups: Groups) -> pd.DataFrame:
    """`store.table` of all groups, with their `label`: at wd 0 a run stands under both its optimizers."""
    labels = [label for label, histories in groups.items() for _ in histories]
    return store.table([h for histories in groups.values() for h in histories]).assign(label=labels)


def valid(groups: Groups) -> list[History]:
    """The runs of all groups that pass the paper's filter, each once."""
    return list({h.run: h for histories in groups.values() for h in histories if h.valid}.values())


def like(run: Run, *varied: str) -> tuple:
    """What a run has in common with those that differ from it in rule, decays and the `varied` fields alone."""
    return tuple(run.model_dump(exclude={"rule", "coupled_wd", "decoupled_wd", *varied}).values())


def _valid(histories: list[History], *columns: str, varied: tuple[str, ...] = ()) -> pd.DataFrame:
    """The valid runs as a table: what they are `like`, the fields of Run, wd, and these final metrics as floats."""
    kept = valid({"": histories})
    found = store.table(kept).assign(like=[like(h.run, *varied) for h in kept])
    found = found.reindex(
        columns=["run", "like", *Run.model_fields, "wd", *columns]
    )  # where there is none, too
    return found.astype(dict.fromkeys(("wd", *columns), float))


def pairs(coupled: list[History], decoupled: list[History], column: str) -> tuple[int, int]:
    """In how many pairs the decoupled run's final value is higher, and the number of pairs.

    Each valid decoupled run with decay is compared with a valid coupled one that agrees with it in all but rule and
    decay: that of the largest decay not above its own. Where the metric falls with coupled decay, as NC0 does, a smaller
    decay works for the coupled run's disadvantage. SGD without momentum is left out: there both decays are the same step.
    """
    first, second = _valid(coupled, column), _valid(decoupled, column)
    second = second[(second["wd"] > 0) & ((second["rule"] != "sgd") | (second["momentum"] > 0))]
    found = second.merge(first[first["wd"] > 0], on="like", suffixes=("", "_coupled"))
    found = found[found["wd_coupled"] <= found["wd"]]
    found = found.sort_values("wd_coupled").drop_duplicates("run", keep="last")
    return int((found[column] > found[f"{column}_coupled"]).sum()), len(found)


def pairs_in_words(groups: Groups, decoupled: str, columns=("nc0", "nc3")) -> tuple[str, list[float]]:
    """The counts of `pairs` for one rule, as half a sentence and as shares."""
    coupled = COUPLED[decoupled]
    counts = {c: pairs(groups[coupled], groups[decoupled], c) for c in columns}
    text = ", ".join(f"{c.upper()} in {k} of {n}" for c, (k, n) in counts.items())
    return f"{decoupled} above {coupled} in {text} pairs", [k / n if n else 0.0 for k, n in counts.values()]


def rank_correlation(histories: list[History], column: str, along: str = "wd") -> tuple[float, int]:
    """Spearman's rank correlation of a final metric with a field of Run, and the number of groups it is the mean of.

    A group is valid runs, three or more, that differ in that field alone.
    """
    along_wd = along == "wd"
    runs = _valid(histories, column, varied=() if along_wd else (along,))
    groups = runs.groupby("like" if along_wd else ["like", "wd"], sort=False)
    found = [g[[along, column]].corr("spearman").iloc[0, 1] for _, g in groups if len(g) > 2]
    return (float(np.nanmean(found)) if found else float("nan")), len(found)


def best(groups: Groups) -> dict[str, History]:
    """Of each optimizer the valid run with the smallest final NC3 (Tables 2 and 4)."""
    kept = {name: [h for h in histories if h.valid] for name, histories in groups.items()}
    return {name: min(runs, key=lambda h: h.final["nc3"]) for name, runs in kept.items() if runs}


def regression(histories: list[History], y: str = "nc3") -> pd.DataFrame:
    """Ordinary least squares of a final metric on log10 NC0 over valid runs: Table 5's columns, a row a learning rate,
    then all.

    A learning rate with fewer than three runs is left out. The standard errors take runs as independent, as the
    paper's do.
    """
    import statsmodels.api as sm  # takes a second to import, and no run needs it

    runs, rows = _valid(histories, "nc0", y), {}
    for label, part in [*((f"LR={lr:g}", g) for lr, g in runs.groupby("lr")), ("all", runs)]:
        if len(part) < 3:
            continue
        fit = sm.OLS(part[y].to_numpy(), sm.add_constant(np.log10(part["nc0"].to_numpy()))).fit()
        slope = [values[1] for values in (fit.params, fit.bse, fit.tvalues, fit.pvalues)]
        whole = (fit.rsquared, fit.rsquared_adj, fit.fvalue, fit.params[0])
        rows[label] = (len(part), *slope, *fit.conf_int()[1], *whole)
    columns = ["n", "beta", "se", "t", "p", "ci_low", "ci_high", "r2", "r2_adj", "f", "intercept"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
