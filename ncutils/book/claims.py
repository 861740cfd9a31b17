"""What the paper says, a row a figure or table, and how each claim is judged from the stored runs.

A judge gets the table of all stored runs and counts comparisons as shares that go the paper's way. All shares at 0.9 or
more: agree. All under 0.5: disagree. Otherwise: partly. Where no run of the setting is stored: not run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd
import yaml

from ncutils import analysis, store
from ncutils.book import published
from ncutils.book.style import METRICS
from ncutils.files import project_folder
from ncutils.optimizers import COUPLED
from ncutils.runs import exact_law, same_steps

# the main text's setting, and those of Figures 19 to 43
MAIN, *OTHERS = (f"{n} on {d}" for d in ("FashionMNIST", "CIFAR10", "MNIST") for n in ("ResNet9", "VGG9"))


class NotRun(Exception):
    """No run is stored from which a claim could be judged. Its text, if any, says more."""


@dataclass(frozen=True)
class Seen:
    """What is seen: in words, as shares of comparisons that go the paper's way, and the runs that show it."""

    text: str
    shares: list[float]
    runs: pd.DataFrame

    @property
    def verdict(self) -> str:
        """By the rule at the head of this module."""
        if not len(self.runs):
            return "not run"
        if all(s >= 0.9 for s in self.shares):
            return "agree"
        return "disagree" if all(s < 0.5 for s in self.shares) else "partly"


def look(judge, *arguments) -> Seen:
    """What a judge sees, or, without runs, why it cannot judge."""
    try:
        return judge(*arguments)
    except NotRun as reason:
        return Seen(str(reason) or "no run of this setting is stored", [], pd.DataFrame())


def stored_runs() -> pd.DataFrame:
    """`analysis.table` of all stored runs, without labels."""
    return analysis.table({"": store.Store().histories()}).drop(columns="label")


def _where(runs: pd.DataFrame, **fields) -> pd.DataFrame:
    """The runs with these values; None is a value."""
    kept = [runs[name].isna() if v is None else runs[name] == v for name, v in fields.items()]
    return runs[np.all(kept, axis=0)]


@cache
def _entries(profile: str) -> pd.DataFrame:
    """The entries of a profile's grid file: network, data set, optimizer as `label`, the hash of the run, and that of the one
    that stands for all that take the same steps."""
    entries = store.read_grid(project_folder(f"params/{profile}/grid.yaml"))
    rows = [(run.arch, run.dataset, name, run.hash, same_steps(run).hash) for name, run in entries]
    return pd.DataFrame(rows, columns=["arch", "dataset", "label", "run", "steps"])


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
    with these `fields` and each parameter that is one value of a field, where they are of so many optimizers."""
    for profile in ("paper", "laptop"):
        p = yaml.safe_load(project_folder(f"params/{profile}/{chapter}.yaml").read_text("utf-8"))
        values = {"arch": "resnet9", "n_train": None} | p | fields
        values = {k: v for k, v in values.items() if k in stored and not isinstance(v, list | dict)}
        values["lr"] = np.where(stored["rule"] == "sgd", p.get("lr_sgd", p["lr"]), p["lr"])
        runs = _where(stored, **values)
        if runs["optimizer"].nunique() >= optimizers:
            none = runs[runs["wd"] == 0]
            both = [runs.assign(label=runs["optimizer"]), none.assign(label=none["optimizer"] + "W")]
            return pd.concat(both, ignore_index=True), p
    raise NotRun


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


def _adamw_over_adam(stored, of=MAIN) -> Seen:
    runs = _grid(stored, of, "Adam", "AdamW")
    return Seen(*analysis.pairs_in_words(_groups(runs), "AdamW"), runs)


def _over_wd(stored, of=MAIN) -> Seen:
    runs = _grid(stored, of, "SGD", "SGDW", "Signum", "SignumW")
    ranks = pd.concat([_ranks(_where(runs, label=name), ["nc0", "nc3"]) for name in ("SGD", "Signum")])
    text, shares = analysis.pairs_in_words(_groups(runs), "SignumW")
    known = f"{ranks.min():+.2f} to {ranks.max():+.2f} in {ranks.count()} of 4 cases"
    down = (ranks <= -0.8).mean()  # nan, where too few runs are valid, counts against it
    return Seen(f"rank correlation with wd (SGD, Signum; NC0, NC3) {known}; {text}", [down, *shares], runs)


def _sgdw_like_sgd(stored) -> Seen:
    """`_over_wd`, and SGDW's NC0 and NC3 within a factor of two of SGD's at one decay, where momentum makes them differ."""
    seen = _over_wd(stored)
    sgd, sgdw = (_where(seen.runs, label=name, valid=True) for name in ("SGD", "SGDW"))
    both = sgdw.merge(sgd.query("wd > 0 and momentum > 0"), on=["like", "wd"], suffixes=("", "_sgd"))
    ratios = pd.DataFrame({c: both[c] / both[f"{c}_sgd"] for c in ("nc0", "nc3")})
    text = ", ".join(f"{c.upper()} {ratios[c].min():.2g} to {ratios[c].max():.2g}" for c in ratios)
    shares = [*seen.shares, *ratios.apply(lambda r: r.between(1 / 2, 2).mean())]
    return Seen(f"{seen.text}; SGDW over SGD at one decay: {text}", shares, seen.runs)


def _follows(stored, of=MAIN, column="nc3", by_lr=False) -> Seen:
    """A metric regressed on log10 NC0: positive slopes whose 95 % interval excludes 0; NC1 and NC2 explained less than NC3."""
    runs = _grid(stored, of)
    fits, of_nc3 = (analysis.regression(list(runs["history"]), c) for c in (column, "nc3"))
    fits = fits.drop(index="all") if by_lr else fits.loc[["all"]]
    text = f"slope {', '.join(f'{s:+.3f}' for s in fits['beta'])}, R² {', '.join(f'{r:.2f}' for r in fits['r2'])}"
    text += f" at lr {', '.join(label[3:] for label in fits.index)}" if by_lr else ""
    less = [] if column == "nc3" else [(fits["r2"] < of_nc3["r2"][fits.index]).mean()]
    return Seen(text, [*less, (fits["ci_low"] > 0).mean()], runs)


def _heat_map(stored) -> Seen:
    runs, columns = _where(_grid(stored, MAIN, "SGD"), lr=0.0679), ["nc0", "nc2", "nc3"]
    runs = _where(runs, seed=runs["seed"].min())
    momentum, decay = _ranks(runs[runs["wd"] > 0], columns, "momentum"), _ranks(runs, columns)
    text = f"rank correlation with momentum {_signed(momentum)}; rank correlation with wd {_signed(decay)}"
    return Seen(text, [(momentum <= -0.8).mean(), (decay <= -0.8).mean()], runs)


def _training_curves(stored) -> Seen:
    runs, _ = _chapter(stored, "03_adamw", 6, diverged_epoch=None)
    ends = runs.groupby("label")[METRICS].mean()
    above = pd.DataFrame([ends.loc[d] > ends.loc[c] for d, c in COUPLED.items()])
    text = ", ".join(f"{c.upper()} {n} of 3" for c, n in above.sum().items())
    return Seen(f"decoupled above coupled: {text} rules", list(above.mean()), runs)


def _smallest_of_w(stored) -> Seen:
    names = ["SGD", "Adam", "Signum", "AdamW", "SignumW"]
    runs = _chapter(stored, "03_adamw", 6, diverged_epoch=None)[0].query("label != 'SGDW'")
    change = _over_start(runs, "w_sv_min").groupby(runs["label"]).mean()[names]
    text = ", ".join(f"{name} {factor:.2g}" for name, factor in change.items())
    right = [*(change[:3] < 0.5), *(change[3:] > 1)]
    return Seen(f"smallest singular value of W, end over start: {text}", [np.mean(right)], runs)


def _signumw_grows(stored) -> Seen:
    runs = _where(_chapter(stored, "03_adamw", 6, diverged_epoch=None)[0], label="SignumW")
    smallest, w, m = (_over_start(runs, c).mean() for c in ("w_sv_min", "w_sv_mean", "m_sv_mean"))
    text = f"SignumW, end over start: smallest of W {smallest:.2g}, others {w:.2g}; of M {m:.2g}"
    return Seen(text, [float(change > 2) for change in (smallest, w, m)], runs)


def _interpolation(stored) -> Seen:
    return interpolation(_chapter(stored, "05_interpolation", 3, rule="adam")[0])


def interpolation(runs: pd.DataFrame) -> Seen:
    """Figure 7, of runs at one total decay (`analysis.table`)."""
    runs = _where(runs, valid=True)
    means = runs.groupby("coupled_wd", as_index=False)[["nc0", "nc2", "nc3", "test_acc"]].mean()
    ranks = means.corr("spearman").loc["coupled_wd", ["nc0", "nc2", "nc3"]]
    spread = means["test_acc"].max() - means["test_acc"].min()
    text = f"rank correlation with the coupled share {_signed(ranks)}; test accuracy varies by {100 * spread:.1f} points"
    return Seen(text, [(ranks <= -0.8).mean(), spread < 0.02], runs)


def _sign_descent(stored) -> Seen:
    """Settled: the last third of training moves NC0 by less than a twentieth."""
    runs = _where(stored, dataset="separable", arch="mlp", schedule="constant")
    own = _where(runs, rule="signum", momentum=0)
    if own["optimizer"].nunique() < 2:
        raise NotRun
    paths = [h.frame.set_index("epoch")["nc0"] for h in own["history"]]
    own = own.assign(start=[p.iloc[0] for p in paths], peak=[p.max() for p in paths])
    own = own.assign(before=[p.loc[: 2 * p.index[-1] / 3].iloc[-1] for p in paths])
    coupled, decoupled = (_where(own, optimizer=name) for name in ("Signum", "SignumW"))
    turns = (coupled["peak"] > 1.05 * coupled["start"]) & (coupled["nc0"] < 0.9 * coupled["peak"])
    stays = (decoupled["nc0"] > decoupled["start"]) & (decoupled["nc0"] >= 0.9 * decoupled["peak"])
    moves = decoupled["nc0"] / decoupled["before"] - 1
    means = own.groupby("optimizer")[["start", "peak", "nc0"]].mean().set_axis(["SignGD", "SignGDW"])
    words = [f"{name} {a:.2g}, at most {b:.2g}, ends at {c:.2g}" for name, a, b, c in means.itertuples()]
    text = f"NC0 of {'; '.join(words)}, {100 * moves.mean():+.0f} % in the last third"
    return Seen(text, [turns.mean(), stays.mean(), (moves.abs() < 0.05).mean()], runs)


def _ufm(stored) -> Seen:
    runs = _where(stored, arch="ufm", width=64)
    if runs.empty:
        raise NotRun
    return ufm(runs)


def ufm(runs: pd.DataFrame) -> Seen:
    """Figure 15, of the unconstrained feature model's runs (`analysis.table`): those with decay and 100 % training accuracy.

    Its "SGDMW" is judged as SGD, as the authors' released code uses the name; SGDW is in the text.
    """
    runs = _where(runs, train_acc=1, valid=True).query("wd > 0")
    if not {"Adam", "AdamW", "SGD"} <= set(runs["optimizer"]):
        raise NotRun("runs with decay and 100 % training accuracy are not of all optimizers")
    medians = runs.groupby("optimizer")[["nc0", "nc3"]].median()
    factors = (medians.loc["AdamW"] / medians.drop(index="AdamW")).unstack()
    text = ", ".join(f"{name} {c.upper()} {factor:.2g} ×" for (c, name), factor in factors.items())
    judged = factors.drop("SGDW", level="optimizer", errors="ignore")
    return Seen(f"median AdamW over {text}", [(judged >= 10).mean()], runs)


def _more_epochs(stored) -> Seen:
    runs, p = _chapter(stored, "13_more_epochs", 2, rule="adam")
    factors = of_more_epochs(runs, stored, p["epochs_before"]).query("optimizer == 'AdamW'")
    if factors.empty:
        raise NotRun("no run of AdamW is valid at both lengths")
    return more_epochs(runs, factors, p["epochs"] // p["epochs_before"])


def of_more_epochs(longer: pd.DataFrame, shorter: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """The valid longer runs of which the same run, but for these `epochs`, is there and valid, too; in place of each metric its
    factor, after the longer training over after the shorter one (both tables as `analysis.table`)."""
    longer = _where(longer, valid=True)
    before = [h.run.model_copy(update={"epochs": epochs}).hash for h in longer["history"]]
    both = longer.assign(before=before).merge(
        _where(shorter, valid=True).drop_duplicates("run"),
        left_on="before",
        right_on="run",
        suffixes=("", "_before"),
    )
    return both.assign(**{c: both[c] / both[f"{c}_before"] for c in METRICS})


def more_epochs(runs: pd.DataFrame, factors: pd.DataFrame, times: int) -> Seen:
    """Figure 13, of the longer runs of Adam and AdamW (`analysis.table`) and AdamW's factors (`of_more_epochs`)."""
    text, shares = analysis.pairs_in_words(_groups(runs), "AdamW")
    changes = factors[["nc0", "nc3"]]
    text += f" after {times} times the epochs, which changed AdamW's NC0 and NC3 by factors of {changes.min(axis=None):.2g} to "
    text += f"{changes.max(axis=None):.2g}"
    return Seen(text, [*shares, ((changes > 1 / 2) & (changes < 2)).mean(axis=None)], runs)


def _more_epochs_of_sgd(stored) -> Seen:
    runs = _where(_chapter(stored, "13_more_epochs", 1, rule="sgd")[0], label="SGD")
    law = runs["history"].map(lambda h: exact_law(h)[-1])
    lawful, kept = law > 1e-4, _where(runs, valid=True)
    error = (_over_start(runs, "nc0") / law - 1).abs()[lawful].max()
    ranks = kept[["nc0", "nc2", "nc3"]].corrwith(law, method="spearman")
    text = f"NC0 by the exact law within {error:.1g} in the {lawful.sum()} runs where it ends above 1e-4 of its start; the more "
    text += f"decay has acted, the lower NC0, NC2, NC3: rank correlation {_signed(ranks, False)} over {len(kept)} valid runs"
    return Seen(text, [(ranks >= 0.8).mean()], runs)


def _nc4(stored) -> Seen:
    return nc4(_grid(stored, MAIN))


def nc4(runs: pd.DataFrame) -> Seen:
    """Figure 44, of one setting's runs (`analysis.table`)."""
    kept = _where(runs, valid=True).drop_duplicates("steps")
    ranks, satisfied = kept[METRICS[1:]].corrwith(kept["nc4"], method="spearman"), (kept["nc4"] > 0.99).mean()
    text = f"NC4 above 0.99 in {100 * satisfied:.0f} % of {len(kept)} valid runs; rank correlation with NC1, NC2, NC3 "
    return Seen(text + _signed(ranks, False), [satisfied, (ranks.abs() < 0.3).mean()], runs)


def _vit(stored) -> Seen:
    return vit(_chapter(stored, "15_vit", 3, arch="vit")[0])


def vit(runs: pd.DataFrame) -> Seen:
    """Figure 45, of the runs of SGD, Adam and AdamW (`analysis.table`)."""
    missing = {"SGD", "Adam", "AdamW"} - set(_where(runs, valid=True)["label"])
    if missing:
        raise NotRun(f"no run of {' and '.join(sorted(missing))} is valid")
    text, _ = analysis.pairs_in_words(_groups(runs), "AdamW")  # of this the paper says nothing
    falls = _ranks(_where(runs, label="SGD"), ["nc0", "nc3"])
    shares, words = [(falls <= -0.8).mean()], []
    for name, (c, sign) in itertools.product(("Adam", "AdamW"), (("nc0", 1), ("nc3", -1))):
        means = _where(runs, label=name, valid=True).groupby("wd")[c].mean()
        turn = (sign * means).argmax()  # a maximum of NC0, a minimum of NC3
        shares.append(float(0 < turn < len(means) - 1))
        words.append(f"{c.upper()} of {name} {' … '.join(f'{means.iloc[i]:.2g}' for i in (0, turn, -1))}")
    text += f"; rank correlation of SGD's NC0 and NC3 with wd {falls['nc0']:+.2f} and {falls['nc3']:+.2f}"
    return Seen(f"{text}; over wd (first, extreme, last): {', '.join(words)}", shares, runs)


def _imagenet(stored, columns) -> Seen:
    runs, p = _chapter(stored, "16_imagenet", 2, arch="resnet50", rule="adam")
    text, shares = analysis.pairs_in_words(_groups(runs), "AdamW", columns)
    if p["dataset"] == "imagenet":
        return Seen(text, shares, runs)
    small = f"a narrow ResNet50 on {runs['images'].iloc[0]:,} small images"
    return Seen(f"not on ImageNet; {small}: {text}", [], runs.head(0))  # shown, and not judged


def _order_of_the_six(stored) -> Seen:
    runs, theirs = _chapter(stored, "03_adamw", 6, diverged_epoch=None)[0], pd.DataFrame(published.TABLE1).T
    ranks = runs.groupby("label")[METRICS].mean().corrwith(theirs, method="spearman")
    sgdw = _where(runs, label="SGDW")
    (law,) = {round(100 * (exact_law(h)[-1] - 1), 1) for h in sgdw["history"]}
    measured = 100 * (_over_start(sgdw, "nc0").mean() - 1)
    text = f"rank correlation with the paper's six values {_signed(ranks)}; SGDW's NC0 {measured:+.1f} % (law {law:+.1f} %)"
    return Seen(text, [(ranks >= 0.7).mean(), abs(measured - law) < 1], runs)


def _best(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of each optimizer's best run, by label."""
    return analysis.table({name: [h] for name, h in analysis.best(_groups(runs)).items()}).set_index("label")


def _best_runs(stored) -> Seen:
    runs = _grid(stored, MAIN)
    best = _best(runs).loc[list(published.TABLE2)]
    claims = {f"the smallest {c.upper()}": best[c].idxmin() == "AdamW" for c in ("nc1", "nc2")}
    claims |= {f"the largest {c.upper()}": best[c].idxmax() == "AdamW" for c in ("nc0", "nc3")}
    text = ", ".join(f"{claim}: {'yes' if true else 'no'}" for claim, true in claims.items())
    return Seen(f"AdamW's best run has {text}", [np.mean(list(claims.values()))], runs)


def _counts(stored) -> Seen:
    runs, entries = pd.concat([_grid(stored, of) for of in (MAIN, *OTHERS)]), _entries("paper")
    runs, settings = runs.drop_duplicates("steps"), len(entries.drop_duplicates(["arch", "dataset", "label"]))
    distinct, different = entries["run"].nunique(), entries["steps"].nunique()
    text = f"{len(entries):,} entries in {settings} settings, {distinct:,} distinct, {different:,} of which "
    text += f"differ in mathematics; of the {len(runs)} run here, with other decays, {100 * runs['valid'].mean():.0f} % pass the filter"
    return Seen(text, [float((len(entries), settings) == (3888, 36))], runs)


def _hyperparameters(stored) -> Seen:
    runs = _grid(stored, MAIN)
    ours, theirs = _best(runs)["wd"], pd.DataFrame(published.TABLE4).loc[2]
    stronger, paper = (sum(wd[d] > wd[c] for d, c in COUPLED.items()) for wd in (ours, theirs))
    text = f"{(ours > 0).sum()} of 6 best runs have weight decay; larger under the decoupled optimizer for {stronger} of 3 rules"
    return Seen(f"{text} (paper: {paper})", [(ours > 0).mean(), float(stronger >= paper)], runs)


def _table5(stored) -> Seen:
    runs, paper = _grid(stored, MAIN), pd.DataFrame(published.TABLE5, published.TABLE5_COLUMNS).T
    fits = analysis.regression(list(runs["history"]))
    fits = fits.merge(paper, left_index=True, right_index=True, suffixes=("", "_paper"))
    positive = fits["ci_low"] > 0
    meets = (fits["ci_low"] <= fits["ci_high_paper"]) & (fits["ci_low_paper"] <= fits["ci_high"])
    text = f"slope positive in {positive.sum()} of {len(fits)} rows, its interval meets the paper's in {meets.sum()}; R² "
    text += f"{fits['r2'].min():.2f} to {fits['r2'].max():.2f} (paper: 0.73 to 0.84)"
    return Seen(text, [positive.mean(), meets.mean()], runs)


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
# fmt: off
CLAIMS = pd.DataFrame(columns=["item", "page", "says", "look"], data=[
    ("Figure 1", "03_adamw", f"{ABOVE} at every weight decay", _adamw_over_adam),
    ("Figure 2", "12_regression", "NC3 rises with log NC0 at each learning rate", partial(_follows, by_lr=True)),
    ("Figure 3", "02_weight_decay", f"{OVER_WD}; SGDW stays close to SGD", _sgdw_like_sgd),
    ("Figure 4", "02_weight_decay", "momentum and decay both lower NC0, NC2, NC3 of SGD", _heat_map),
    ("Figure 5", "03_adamw", "at the end of training coupled decay is lower than decoupled", _training_curves),
    ("Figure 6", "03_adamw", "W's smallest singular value grows under AdamW and SignumW, falls under coupled decay", _smallest_of_w),
    ("Figure 7", "05_interpolation", "from AdamW to Adam NC0, NC2, NC3 fall, accuracy stays", _interpolation),
    ("Figure 8", "09_sign_descent", "NC0 rises and falls under SignGD, settles above zero under SignGDW", _sign_descent),
    ("Figure 9", "12_regression", "as Figure 2", partial(_follows, by_lr=True)),
    ("Figure 10", "12_regression", "NC3 rises with log NC0 over all learning rates", _follows),
    ("Figure 11", "12_regression", f"NC1 {LESS}", partial(_follows, column="nc1", by_lr=True)),
    ("Figure 12", "12_regression", f"NC2 {LESS}", partial(_follows, column="nc2", by_lr=True)),
    ("Figure 13", "13_more_epochs", "longer training hardly moves AdamW's NC0 and NC3; it stays above Adam", _more_epochs),
    ("Figure 14", "13_more_epochs", "longer SGD: the trend with decay is unchanged", _more_epochs_of_sgd),
    ("Figure 15", "10_ufm", "UFM: AdamW's NC0 and NC3 are 10 times Adam's and SGDMW's (SGD with momentum)", _ufm),
    ("Figure 16", "03_adamw", "SignumW: singular values of W and M grow", _signumw_grows),
    ("Figure 17", "16_imagenet", f"ImageNet, ResNet50: {ABOVE}", partial(_imagenet, columns=("nc0", "nc3"))),
    ("Figure 18", "16_imagenet", "ImageNet, ResNet50: NC1 and NC2 over decay", partial(_imagenet, columns=("nc1", "nc2"))),
    *((f"Figure {i}", "14_six_settings", f"{of}: {says}", partial(IN_EACH_SETTING[says], of=of))
      for i, (of, says) in enumerate(itertools.product(OTHERS, IN_EACH_SETTING), 19)),
    ("Figure 44", "11_nc_in_practice", "NC4 is satisfied wherever training accuracy is, uncorrelated with NC1 to NC3", _nc4),
    ("Figure 45", "15_vit", "vision transformer: SGD's NC0 and NC3 fall with decay; Adam's and AdamW's NC0 rises, then falls, "
     "their NC3 is U-shaped", _vit),
    ("Table 1", "03_adamw", "the six optimizers at the end of training; SGDW's NC0 -68.9 %", _order_of_the_six),
    ("Table 2", "11_nc_in_practice", "best runs: AdamW has the smallest NC1 and NC2, the largest NC0 and NC3", _best_runs),
    ("Table 3", "14_six_settings", "36 settings, 3,888 runs", _counts),
    ("Table 4", "11_nc_in_practice", "the best runs' hyper-parameters: with decay, larger where decoupled", _hyperparameters),
    ("Table 5", "12_regression", "NC3 on log NC0: slopes 0.14 to 0.20, R² 0.73 to 0.84", _table5),
])
