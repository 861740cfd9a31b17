"""How many comparisons go the paper's way, and what is concluded from that: the rule of the scoreboard, in one place.

A statement of the paper is a set of comparisons of two measurements. `Counted` says how many go its way, with the exact
(Clopper-Pearson) interval: with few comparisons, which is the usual case, Wilson's and the score test decide too often. A
bootstrap would have no width where all go one way. Comparisons share runs, so the interval is that of as many as would vary
as much, were there nothing to find (`effective`). Runs of one network, data and seed share initial weights and data, which
no count of comparisons undoes; so the number of such sets stands beside it, and one alone decides nothing. A statement
that pools networks and data sets is one about such: a majority of them must say the same (`Counted.networks`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ncutils import analysis

# supported where no larger share goes the other way, against where no larger one goes the paper's
MINORITY = 0.2
LEVEL = 0.05  # of the test against one half, which a 95 % interval inverts, and of Holm's correction within a family of figures
FEWEST = 2  # networks, data and seeds: one set alone decides nothing, however many its comparisons
CLOSE = 2.0  # factor within which values are "close" or "hardly move"
STILL = 1.1  # factor within which a curve has settled, and beyond which it has turned
MUCH = 10.0  # the paper's "one order of magnitude"
UNRELATED = 0.5  # rank correlation under which one metric does not follow another; of eight unrelated runs one in five has more
ACCURACY = 1.02  # factor within which an accuracy "stays"
VERDICTS = ("supported", "mixed", "against", "not decided", "not run")


@dataclass(frozen=True)
class Counted:
    """`k` of `n` comparisons, which count as `effective` independent ones, from so many `sets` of network, data and seed: the
    exact 95 % interval and the p of its test against one half. `networks`, of a pooled statement: `by_network`."""

    k: int
    n: int
    effective: float
    sets: int
    networks: Counted | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Shares; nan without a comparison."""
        from statsmodels.stats.proportion import proportion_confint

        if not self.n:
            return math.nan, math.nan
        m = self.effective
        low, high = proportion_confint(m * (self.k / self.n), m, method="beta")  # not above m by rounding
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Two-sided binomial test of one half, which the interval inverts."""
        from scipy.special import betainc

        if not self.n:
            return math.nan
        most = self.effective * (max(self.k, self.n - self.k) / self.n)  # so many or more of fair coins
        return min(1.0, 2 * float(betainc(most, self.effective - most + 1, 0.5)))

    def verdict(self, minority: float = MINORITY) -> str:
        """Supported, or against: all but a minority of the comparisons go one way, and the interval leaves out an even split; so
        does that of the networks, where a statement pools them. Not decided: an even split and such a majority both lie within
        it, or all is of one setting and seed, or the networks alone are too few or disagree. Mixed: else."""
        if not self.n:
            return "not run"
        if self.sets < FEWEST:
            return "not decided"
        share, (low, high) = self.k / self.n, self.interval
        if low <= 0.5 <= high:
            return "not decided" if low <= minority or high >= 1 - minority else "mixed"
        if max(share, 1 - share) < 1 - minority:
            return "mixed"
        if self.networks:
            low, high = self.networks.interval
            if not (low > 0.5 if share > 0.5 else high < 0.5):
                return "not decided"
        return "supported" if share > 0.5 else "against"


_NONE = pd.DataFrame(columns=["like", "one", "other", "value", "fixed"], dtype=object)  # no comparison


@dataclass(frozen=True)
class Statement:
    """What the paper says, and comparisons: a row each, with `like` (setting and seed), the measurements `one` and `other`
    that are compared, their `value`, and `fixed`, the value with the gauge of W fixed.

    A value is log(what should be larger / what should be smaller). It goes the paper's way above log(factor); or, `within`,
    where its size is under log(factor). `gauge`: what fixing the gauge does: "changes" it, leaves the "same", or makes the
    quantity "zero"; any other words say why that is not known. Without a comparison `why` there is none. `ratios` is False
    where values are mere signs, `chance` where one half is not what chance alone would give: of a value that lies on one
    side of a line, or, `within`, close to another. `pooled`: over networks and data sets. `moved`: another factor in words.
    """

    says: str
    found: pd.DataFrame = field(default_factory=lambda: _NONE)
    factor: float = 1.0
    within: bool = False
    gauge: str = "same"
    ratios: bool = True
    chance: bool = True
    pooled: bool = False
    why: str = ""
    moved: str = "with a factor of {:.3g}"

    def counted(self, times: float = 1.0, column: str = "value") -> Counted:
        """With `times` the threshold log(factor)."""
        (found, independent, n_sets), limit = self._known[column], times * math.log(self.factor)
        way = found[column].abs() < limit if self.within else found[column] > limit
        networks = by_network(found["like"], way) if self.pooled else None
        return Counted(int(way.sum()), len(found), independent, n_sets, networks)

    @property
    def compared(self) -> pd.DataFrame:
        """What was `found`, where its value is known."""
        return self._known["value"][0]

    @property
    def p(self) -> float:
        """Of the test against one half; nan where chance has no such law."""
        return self.counted().p if self.chance and not self.within else math.nan

    @functools.cached_property
    def _known(self) -> dict[str, tuple[pd.DataFrame, float, int]]:
        """Of both columns the comparisons that have it, as how many independent ones they count, and their `sets`."""
        there = {column: self.found.dropna(subset=column) for column in ("value", "fixed")}
        return {column: (found, effective(found), sets(found["like"])) for column, found in there.items()}

    def effect(self, column: str = "value") -> tuple[float, float, float]:
        """Median ratio and the ends of its 95 % interval, whole sets drawn (`analysis.ratio_of_medians`); nan for signs."""
        found = self._known[column][0]
        if not self.ratios or found.empty:
            return math.nan, math.nan, math.nan
        ratios = pd.DataFrame({"like": found["like"], "x": np.exp(found[column]), "x_coupled": 1.0})
        return analysis.ratio_of_medians(ratios, "x", pairwise=True, resamples=2000)


def effective(found: pd.DataFrame) -> float:
    """The number of independent comparisons of which as large a share would go one way by chance: n^2 / (4 Var), at most n.

    Var is that of the count for independent normal measurements. A comparison is the sign of their contrast: `one` less
    `other`, and where the table has them `one_before` and `other_before`, less that difference before. The signs of two
    contrasts of correlation r vary together by arcsin(r) / (2 pi), which is 1/12 for pairs with one measurement in common
    on the same side of both, whatever the distribution. All pairs of six runs count as 7.9 (Kendall's variance), three runs
    against a fourth as 1.8.
    """
    from scipy import sparse

    if found.empty:
        return 0.0
    signs = {"one": 1, "other": -1, "one_before": -1, "other_before": 1}
    there = [name for name in signs if name in found]
    n, measured = len(found), pd.factorize(pd.concat([found[name] for name in there]))[0]
    values, rows = np.repeat([float(signs[name]) for name in there], n), np.tile(np.arange(n), len(there))
    contrasts = sparse.coo_array((values, (rows, measured))).tocsr()  # most have no measurement in common
    lengths = np.sqrt(contrasts.power(2).sum(axis=1)).clip(1e-9)  # a run beside itself has none
    contrasts = sparse.diags_array(1 / lengths) @ contrasts
    variance = np.arcsin((contrasts @ contrasts.T).data.clip(-1, 1)).sum() / (2 * math.pi)
    return float(min(n, n**2 / (4 * variance))) if variance > 1e-9 else float(n)


def sets(like) -> int:
    """How many different networks, data sets and seeds are among what comparisons are `analysis.like`."""
    return analysis.fields_of(like, "arch", "dataset", "seed").nunique()


def by_network(like, way) -> Counted:
    """Pairs of network and data: in how many most comparisons go the paper's way, of how many. One in which as many do not is
    not counted, as in the sign test."""
    shares = way.groupby(analysis.fields_of(like, "arch", "dataset")).mean()
    k, n = int((shares > 0.5).sum()), int((shares != 0.5).sum())
    return Counted(k, n, n, n)


def judged(statements: pd.DataFrame) -> pd.DataFrame:
    """A table of `statement` and `family` with what is `counted` and its `verdict`, both again with the gauge fixed (`fixed`,
    `fixed_verdict`), `p` after Holm's correction within a family, and how the verdict `moves` with a threshold."""
    table = statements.copy()
    table["counted"] = [s.counted() for s in table["statement"]]
    table["verdict"] = [c.verdict() for c in table["counted"]]
    table["fixed"] = [s.counted(column="fixed") for s in table["statement"]]
    table["fixed_verdict"] = [c.verdict() for c in table["fixed"]]
    table["p"] = [s.p for s in table["statement"]]
    for _, p in table["p"].dropna().groupby(table["family"]):
        table.loc[p.index, "p"] = holm(p)
    table["moves"] = [moves(s) for s in table["statement"]]
    return table


def holm(p: pd.Series) -> pd.Series:
    """These p after Holm's correction (Scand. J. Statist. 6, 1979). statsmodels' collects all garbage first, half a
    second a call."""
    p = p.sort_values()
    return (p * np.arange(len(p), 0, -1)).cummax().clip(upper=1)


def moves(statement: Statement) -> str:
    """The verdicts that half or twice a threshold would give, where they are others: of MINORITY, and of log(factor)."""
    counted, found = statement.counted(), []
    verdict = counted.verdict()
    for times in (0.5, 2):
        others = [
            (counted.verdict(times * MINORITY), f"where {100 * times * MINORITY:.0f} % may go the other way")
        ]
        if statement.factor != 1:
            others.append(
                (statement.counted(times).verdict(), statement.moved.format(statement.factor**times))
            )
        found += [f"{other} {where}" for other, where in others if other != verdict]
    return "; ".join(found)
