"""Stored runs -> numbers: what a grid has stored, the gauge-fixed metrics of any run, like compared with like, rank
correlations, ratios of medians, NC3 regressed on NC0."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from ncutils import store
from ncutils.metrics import GAUGE_FIXED, KEYS
from ncutils.optimizers import COUPLED, OPTIMIZERS
from ncutils.runs import History, Run, same_steps
from ncutils.store import Store, read_grid

Groups = dict[str, list[History]]  # a label, such as an optimizer's name -> its runs


def stored_grid(path, runs: Store | None = None, **fields) -> tuple[Groups, list[Run]]:
    """The stored runs of a grid file by optimizer, the paper's six in its order before others, and those that are missing.

    `fields` keeps only runs with these values (arch="resnet9", ...). At wd 0 a run counts for both its optimizers.
    """
    runs = runs or Store()
    entries = [e for e in read_grid(path) if all(getattr(e[1], f) == v for f, v in fields.items())]
    stored = {run: runs.get(run) for run in dict.fromkeys(run for _, run in entries)}
    groups: Groups = {name: [] for name in [*OPTIMIZERS, *(name for name, _ in entries)]}
    for name, run in dict.fromkeys(entries):
        if history := stored[run]:
            groups[name].append(history)
    return {name: runs for name, runs in groups.items() if runs}, [run for run, h in stored.items() if not h]


def table(groups: Groups) -> pd.DataFrame:
    """`store.table` of all groups, with the `label` of each run, what it is `like`, and its `history`: at wd 0 a run stands
    under both its optimizers."""
    labels = [label for label, histories in groups.items() for _ in histories]
    all_of_them = [h for histories in groups.values() for h in histories]
    alike = [like(h.run) for h in all_of_them]
    return store.table(all_of_them).assign(label=labels, like=alike, history=all_of_them)


def gauge_fixed(history: History) -> pd.DataFrame:
    """`metrics.GAUGE_FIXED` of each measured row of any run, stored ones included: [rows, 8], with its frame's index.

    Columns that the frame has are taken from it. The others follow from NC0 and the Gram matrices (`History.grams`) as
    `metrics.nc_metrics` defines them: of W_c = C W, C = I - J/K, are C (W W^T) C and C (W M). They are as exact as those
    float32 matrices: relative errors of about 1e-7 / (1 - gauge_share), which make an nc3c under 1e-3 rounding and let a
    share fall just below 0. off_span_share and in_span_share divide by the (K - 1)-th eigenvalue of M^T M, and are nan
    where that is under 1e-5 of the first, mostly rounding. What needs W W^T or M^T M is nan where the network has
    decayed so far that it leaves the range of float32.

    Raises ValueError for a run with neither these columns nor Gram matrices (more than 32 classes).
    """
    missing = [key for key in GAUGE_FIXED if key not in history.frame]
    if missing and "gram" not in history.frame:
        raise ValueError(f"run {history.run.hash} has neither Gram matrices nor {', '.join(missing)}")
    found = _of_grams(history.grams.astype(float), history.frame["nc0"].to_numpy()) if missing else {}
    columns = {key: found[key] if key in missing else history.frame[key] for key in GAUGE_FIXED}
    return pd.DataFrame(columns, index=history.frame.index)


def with_gauge_fixed(groups: Groups) -> Groups:
    """The same runs with `gauge_fixed` among the columns of their frames, for all that takes labelled runs."""
    there = {h.run: h for histories in groups.values() for h in histories}
    for run, h in there.items():
        if not {*GAUGE_FIXED} <= {*h.final}:
            there[run] = History(run, h.frame.assign(**gauge_fixed(h)), h.info)
    return {label: [there[h.run] for h in histories] for label, histories in groups.items()}


@np.errstate(divide="ignore", invalid="ignore")  # W = 0 or M = 0: nan, as in metrics
def _of_grams(grams: np.ndarray, nc0: np.ndarray) -> dict[str, np.ndarray]:
    """`metrics.GAUGE_FIXED` from M^T M, W W^T, W M [rows, 3, K, K] and NC0 [rows]."""
    k = grams.shape[-1]
    centre = np.eye(k) - 1 / k
    etf = centre / np.sqrt(k - 1)
    # near the end of float32's range digits are lost
    lost = np.abs(grams).max((2, 3), keepdims=True) < 1e-30
    means, weights, both = np.moveaxis(np.where(lost, 0, grams), 1, 0)
    means, weights_c, both_c = centre @ means @ centre, centre @ weights @ centre, centre @ both
    m2, w2, wc2 = (np.trace(g, axis1=1, axis2=2) for g in (means, weights, weights_c))
    m2, w2, wc2 = (np.where(square > 0, square, np.nan) for square in (m2, w2, wc2))
    along = np.trace(both, axis1=1, axis2=2)  # <W, M^T>: that of W_c, too, since M 1 = 0

    norms = np.sqrt(np.diagonal(weights_c, axis1=1, axis2=2))
    cosines = weights_c / (norms[:, :, None] * norms[:, None, :])
    values, vectors = np.linalg.eigh(means)  # ascending; the first is 0, of 1
    values, vectors = values[:, 1:], vectors[:, :, 1:]
    values[~(values[:, 0] > 1e-5 * values[:, -1])] = np.nan
    in_span = (np.square(both_c @ vectors).sum(1) / values).sum(1)
    return {
        "nc2wc": _to_etf(weights_c, etf),
        "nc2wnc": norms.std(1) / norms.mean(1),
        "nc2wac": np.abs(cosines + 1 / (k - 1))[:, ~np.eye(k, dtype=bool)].mean(1),
        "nc2mc": _to_etf(both_c, etf),
        "nc3c": np.sqrt(np.maximum(2 - 2 * along / np.sqrt(wc2 * m2), 0)),
        "gauge_share": nc0**2 / (k * w2),
        "off_span_share": (wc2 - in_span) / w2,
        "in_span_share": (in_span - along**2 / m2) / w2,
    }


def _to_etf(grams, etf):
    return np.linalg.norm(grams / np.linalg.norm(grams, axis=(1, 2), keepdims=True) - etf, axis=(1, 2))


def usual_networks(histories: list[History]) -> list[History]:
    """The runs of ResNet9 and VGG9 whose classifier is trained as all else: not centred, without decays of its own; without
    those in float64, which repeat others."""
    runs = [h for h in histories if h.run.arch in ("resnet9", "vgg9") and h.run.centre_head == "never"]
    runs = [h for h in runs if h.run.head_coupled_wd is None and h.run.head_decoupled_wd is None]
    return [h for h in runs if h.run.precision != "float64"]


def once(histories: list[History]) -> list[History]:
    """Each run once. Those that take the same steps (`runs.same_steps`), SGD and SGDW without momentum, count as one run:
    the one that stands for them, where it is there."""
    found: dict[Run, History] = {}
    for h in histories:
        stands_for = same_steps(h.run)
        if stands_for not in found or h.run == stands_for:
            found[stands_for] = h
    return list(found.values())


def valid(groups: Groups, least: float | None = None) -> list[History]:
    """The runs of all groups that pass the paper's filter, each `once`; or those that did not diverge and have at least
    this training accuracy."""
    runs = [h for histories in groups.values() for h in histories if not h.diverged]
    return once([h for h in runs if (h.valid if least is None else h.final["train_acc"] >= least)])


def like(run: Run, *varied: str) -> tuple:
    """What a run has in common with those that differ from it in rule, decays and the `varied` fields alone: pairs of field and value."""
    return tuple(run.model_dump(exclude={"rule", "coupled_wd", "decoupled_wd", *varied}).items())


def fields_of(likes, *fields: str) -> pd.Series:
    """The values of these fields in each of what runs are `like`; anything else, such as a seed's number, stands for itself."""
    likes = pd.Series(likes, dtype=object)
    return likes.map(lambda of: tuple(v for k, v in of if k in fields) if isinstance(of, tuple) else of)


def _valid(
    histories: list[History], *columns: str, varied: tuple[str, ...] = (), least: float | None = None
) -> pd.DataFrame:
    """The valid runs as a table: what they are `like`, the fields of Run, wd, and these final metrics as floats."""
    kept = valid({"": histories}, least)
    found = store.table(kept).assign(like=[like(h.run, *varied) for h in kept])
    if kept and (unknown := [c for c in columns if c not in found and c not in KEYS]):
        raise ValueError(f"column {unknown[0]!r} is not allowed: no run has it, use one of {', '.join(KEYS)}")
    # these columns where there is no run, too
    found = found.reindex(columns=["run", "like", *Run.model_fields, "wd", *columns])
    return found.astype(dict.fromkeys(("wd", *columns), float))


def paired(
    coupled: list[History], decoupled: list[History], *columns: str, least: float | None = None
) -> pd.DataFrame:
    """Pairs of runs that differ in where the decay acts: a row a pair, what they are `like`, the fields of the decoupled
    run, its final metrics, and those of the coupled run, named NAME_coupled.

    Each valid decoupled run with decay is compared with a valid coupled one that agrees with it in all but rule and
    decay: that of the largest decay not above its own. Where the metric falls with coupled decay, as NC0 does, a smaller
    decay works for the coupled run's disadvantage. SGD without momentum is left out: there both decays are the same step.
    `least` replaces the paper's filter as in `valid`.
    """
    found = _of_two_decays(coupled, decoupled, *columns, least=least)
    found = found[(found["wd_coupled"] > 0) & (found["wd_coupled"] <= found["wd"])]
    return found.sort_values("wd_coupled", kind="stable").drop_duplicates("run", keep="last")


def best_of_each(histories: list[History], by: str = "nc3") -> list[History]:
    """Of the valid runs that agree in all but rule and decay the one with the smallest final `by`, for each such set: one
    optimizer's runs at their best decay, one a setting and seed. `best` takes one over all."""
    at_best: dict[tuple, History] = {}
    known = [h for h in valid({"": histories}) if not math.isnan(h.final[by])]
    for h in sorted(known, key=lambda h: h.final[by]):
        at_best.setdefault(like(h.run), h)
    return list(at_best.values())


def paired_best(
    coupled: list[History], decoupled: list[History], *columns: str, by: str = "nc3"
) -> pd.DataFrame:
    """As `paired`, but best decay against best decay (`best_of_each`). Where no decay does better than none, both runs of a
    pair are the same one."""
    return _of_two_decays(best_of_each(coupled, by), best_of_each(decoupled, by), *columns)


def _of_two_decays(coupled, decoupled, *columns, least=None) -> pd.DataFrame:
    """All pairs of valid runs that agree in all but rule and decay, without SGD at momentum 0."""
    second = _valid(decoupled, *columns, least=least)
    second = second[(second["rule"] != "sgd") | (second["momentum"] > 0)]
    first = _valid(coupled, *columns, least=least)[["like", *dict.fromkeys(("run", "wd", *columns))]]
    return second.merge(first, on="like", suffixes=("", "_coupled"))


def ratio_of_medians(
    found: pd.DataFrame, column: str, pairwise: bool = False, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Median of a metric over the decoupled runs of `paired` or `paired_best` by its median over the coupled ones, and the
    ends of a 95 % percentile bootstrap interval; with `pairwise` the median of the pairs' ratios instead.

    Medians are taken of logarithms. What depends on one another is drawn together, with replacement (`_resampled`): where
    there are five or more pairs of network and data, all runs of such a pair, so that the interval is one for other networks
    and data; else those that are `like` one another (one setting and seed, several decays), and it is one for other seeds and
    settings of these. A pair of which one value is not known is left out. All is
    nan without a pair, the interval where there are fewer than five of either.
    """
    found = found.dropna(subset=[column, f"{column}_coupled"])
    if found.empty:
        return math.nan, math.nan, math.nan
    first, second = np.log(found[[f"{column}_coupled", column]].to_numpy()).T
    networks = fields_of(found["like"], "arch", "dataset")
    of_set, sets = pd.factorize(networks if networks.nunique() >= 5 else found["like"])
    n = len(sets)
    drawn, chance = _resampled(n, resamples, seed)
    counts = np.vstack([np.ones(n, dtype=int), drawn])[:, of_set]  # first each pair once
    if pairwise:
        ratio, *others = np.exp(_medians(second - first, counts))
    else:
        ratio, *others = np.exp(_medians(second, counts) - _medians(first, counts))
    if n < 5:
        return float(ratio), math.nan, math.nan
    low, high = np.percentile(others, [2.5, 97.5], weights=chance, method="inverted_cdf")
    return float(ratio), float(low), float(high)


def _resampled(n: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n sets is in a bootstrap resample [B, n], and that one's probability [B]: every one of them where they
    are few (n up to 7), else `resamples` that a generator seeded `seed` draws."""
    if math.comb(2 * n - 1, n) > 2000:
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
        return drawn, np.full(resamples, 1 / resamples)
    every = itertools.combinations_with_replacement(range(n), n)
    drawn = [np.bincount(chosen, minlength=n) for chosen in every]
    orders = [math.factorial(n) / math.prod(map(math.factorial, often.tolist())) for often in drawn]
    return np.array(drawn), np.array(orders) / n**n


def _medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Median of values [n], each as often as a row of counts [B, n] says: [B]."""
    order = np.argsort(values)
    so_far = counts[:, order].cumsum(1)
    half = so_far[:, -1:] / 2
    ends = [(so_far >= half).argmax(1), (so_far > half).argmax(1)]
    return values[order][ends].mean(0)


def pairs(coupled: list[History], decoupled: list[History], column: str) -> tuple[int, int]:
    """In how many pairs (`paired`) the decoupled run's final value is higher, and the number of pairs."""
    found = paired(coupled, decoupled, column).dropna(subset=[column, f"{column}_coupled"])
    return int((found[column] > found[f"{column}_coupled"]).sum()), len(found)


def pairs_in_words(groups: Groups, decoupled: str, columns=("nc0", "nc3")) -> str:
    """The counts of `pairs` for one rule, as half a sentence."""
    coupled = COUPLED[decoupled]
    counts = {c: pairs(groups[coupled], groups[decoupled], c) for c in columns}
    text = ", ".join(f"{c.upper()} in {k} of {n}" for c, (k, n) in counts.items())
    return f"{decoupled} above {coupled} in {text} pairs"


def rank_correlation(histories: list[History], column: str, along: str = "wd") -> tuple[float, int]:
    """Spearman's rank correlation of a final metric with a field of Run, and the number of groups it is the mean of.

    A group is valid runs, three or more, of one optimizer, whose runs `histories` are, that differ in that field alone.
    """
    if along not in {"wd", *Run.model_fields} - {"coupled_wd", "decoupled_wd"}:
        raise ValueError(
            f"along = {along!r} is not allowed: it must be 'wd' or a field of Run beside the two decays"
        )
    along_wd = along == "wd"
    runs = _valid(histories, column, varied=() if along_wd else (along,))
    groups = runs.groupby("like" if along_wd else ["like", "wd"], sort=False)
    found = [g[[along, column]].corr("spearman").iloc[0, 1] for _, g in groups if len(g) > 2]
    found = [r for r in found if not math.isnan(r)]  # a metric that does not vary has no order
    return (float(np.mean(found)) if found else math.nan), len(found)


def best(groups: Groups) -> dict[str, History]:
    """Of each optimizer the valid run with the smallest final NC3 (Tables 2 and 4)."""
    kept = {n: [h for h in of if h.valid and not math.isnan(h.final["nc3"])] for n, of in groups.items()}
    return {name: min(runs, key=lambda h: h.final["nc3"]) for name, runs in kept.items() if runs}


def regression(histories: list[History], y: str = "nc3") -> pd.DataFrame:
    """Ordinary least squares of a final metric on log10 NC0 over valid runs: Table 5's columns, a row a learning rate,
    then all.

    A learning rate with fewer than three runs is left out. The standard errors take runs as independent, as the
    paper's do.
    """
    from statsmodels.regression.linear_model import OLS
    from statsmodels.tools import add_constant

    runs, rows = _valid(histories, "nc0", y), {}
    for label, part in [*((f"LR={lr:g}", g) for lr, g in runs.groupby("lr")), ("all", runs)]:
        if len(part) < 3 or not part["nc0"].min() > 0 or part["nc0"].nunique() < 2:  # no line through these
            continue
        fit = OLS(part[y].to_numpy(), add_constant(np.log10(part["nc0"].to_numpy()))).fit()
        slope = [values[1] for values in (fit.params, fit.bse, fit.tvalues, fit.pvalues)]
        whole = (fit.rsquared, fit.rsquared_adj, fit.fvalue, fit.params[0])
        rows[label] = (len(part), *slope, *fit.conf_int()[1], *whole)
    columns = ["n", "beta", "se", "t", "p", "ci_low", "ci_high", "r2", "r2_adj", "f", "intercept"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
