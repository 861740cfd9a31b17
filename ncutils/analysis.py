"""Stored runs -> numbers: what a grid has stored, like compared with like, rank correlations, NC3 regressed on NC0."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ncutils import store
from ncutils.optimizers import COUPLED, OPTIMIZERS
from ncutils.runs import History, Run
from ncutils.store import Store
from ncutils.sweeps import read_grid

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
    groups = {name: [] for name in OPTIMIZERS}
    for name, run in dict.fromkeys(entries):
        if stored[run]:
            groups[name].append(stored[run])
    return {name: runs for name, runs in groups.items() if runs}, [run for run, h in stored.items() if not h]


def table(groups: Groups) -> pd.DataFrame:
    """`store.table` of all groups, with their `label`: at wd 0 a run stands under both its optimizers."""
    return pd.concat(
        [store.table(runs).assign(label=label) for label, runs in groups.items()], ignore_index=True
    )


def valid(groups: Groups) -> list[History]:
    """The runs of all groups that pass the paper's filter, each once."""
    return list({h.run: h for histories in groups.values() for h in histories if h.valid}.values())


def like(run: Run, *varied: str) -> tuple:
    """What a run has in common with those that differ from it in rule, decays and the `varied` fields alone."""
    return tuple(run.model_dump(exclude={"rule", "coupled_wd", "decoupled_wd", *varied}).values())


def pairs(coupled: list[History], decoupled: list[History], column: str) -> tuple[int, int]:
    """In how many pairs the decoupled run's final value is higher, and the number of pairs.

    Each valid decoupled run with decay is compared with a valid coupled one that agrees with it in all but rule and
    decay: that of the largest decay not above its own. Where the metric falls with coupled decay, as NC0 does, a smaller
    decay works for the coupled run's disadvantage. SGD without momentum is left out: there both decays are the same step.
    """
    found = []
    for second in (
        h for h in decoupled if h.valid and h.run.wd and (h.run.rule, h.run.momentum) != ("sgd", 0)
    ):
        fits = [
            h
            for h in coupled
            if h.valid and 0 < h.run.wd <= second.run.wd and like(h.run) == like(second.run)
        ]
        if fits:
            first = max(fits, key=lambda h: h.run.wd)
            found.append(second.final[column] > first.final[column])
    return int(sum(found)), len(found)


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
    groups = {}
    for h in {h.run: h for h in histories if h.valid}.values():
        kept = like(h.run) if along == "wd" else (*like(h.run, along), h.run.wd)
        groups.setdefault(kept, []).append((getattr(h.run, along), h.final[column]))
    found = [
        pd.DataFrame(points, dtype=float).corr("spearman").loc[0, 1]
        for points in groups.values()
        if len(points) > 2
    ]
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

    points = [
        (h.run.lr, np.log10(h.final["nc0"]), h.final[y])
        for h in {h.run: h for h in histories}.values()
        if h.valid
    ]
    table, rows = pd.DataFrame(points, columns=["lr", "x", "y"], dtype=float), {}
    for label, part in [*((f"LR={lr:g}", g) for lr, g in table.groupby("lr")), ("all", table)]:
        if len(part) < 3:
            continue
        fit = sm.OLS(part["y"].to_numpy(), sm.add_constant(part["x"].to_numpy())).fit()
        low, high = fit.conf_int()[1]
        rows[label] = (len(part), fit.params[1], fit.bse[1], fit.tvalues[1], fit.pvalues[1], low, high)
        rows[label] += (fit.rsquared, fit.rsquared_adj, fit.fvalue, fit.params[0])
    columns = ["n", "beta", "se", "t", "p", "ci_low", "ci_high", "r2", "r2_adj", "f", "intercept"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
