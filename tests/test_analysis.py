"""Numbers from stored runs: pairs, rank correlations, regression, against hand-made runs and independent computations."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ncutils import analysis
from ncutils.book import figures, pages, tables
from ncutils.runs import decay_budget, same_steps
from ncutils.store import Store
from ncutils.training import History, Run

COLUMNS = ("nc0", "nc1", "nc2", "nc3", "nc4", "test_acc")


def history(optimizer, wd, nc0, nc3=0.5, train_acc=1.0, diverged=None, **fields):
    """A run that was never trained: two rows, the last one as given."""
    run = Run.named(optimizer, wd, **fields)
    row = dict.fromkeys(COLUMNS, 1.0) | {"lr": run.lr, "train_acc": train_acc}
    rows = [row | {"epoch": e} for e in (0, run.epochs)]
    rows[1] |= {"nc0": nc0, "nc3": nc3}
    return History(run, pd.DataFrame(rows), {"n_train": 100, "n_classes": 10, "diverged_epoch": diverged})


def test_pairs_compare_with_the_largest_decay_not_above():
    coupled = [history("Adam", wd, nc0) for wd, nc0 in ((0, 2), (0.01, 1), (0.1, 0.5), (1, 0.1))]
    decoupled = [history("AdamW", wd, nc0) for wd, nc0 in ((0.005, 9), (0.05, 0.9), (0.5, 0.6), (5, 0.2))]
    # 0.005 has none below it; 0.05 meets 0.01: lower; 0.5 meets 0.1: higher; 5 meets 1: higher
    assert analysis.pairs(coupled, decoupled, "nc0") == (2, 3)
    failed = [*coupled[:3], history("Adam", 1, 0.1, train_acc=0.9)]
    assert analysis.pairs(failed, decoupled, "nc0") == (1, 3)  # 5 now meets 0.1
    same_step = ([history(name, 0.1, nc0, momentum=0)] for name, nc0 in (("SGD", 1), ("SGDW", 2)))
    assert analysis.pairs(*same_step, "nc0") == (0, 0)
    other_seed = [history("AdamW", 0.5, 9, seed=1)]
    assert analysis.pairs(coupled, other_seed, "nc0") == (0, 0)
    # 0.05 meets 0.01: as high, not higher
    tied = [history("AdamW", wd, nc0) for wd, nc0 in ((0.05, 1.0), (0.5, 0.6))]
    assert analysis.pairs(coupled, tied, "nc0") == (1, 2)
    words = analysis.pairs_in_words({"Adam": coupled, "AdamW": tied}, "AdamW", ("nc0", "nc3"))
    assert words == "AdamW above Adam in NC0 in 1 of 2, NC3 in 0 of 2 pairs"
    none = analysis.pairs_in_words({"Adam": coupled, "AdamW": []}, "AdamW", ("nc0",))
    assert none == "AdamW above Adam in NC0 in 0 of 0 pairs"
    # with another filter: 5 meets the run that the paper's drops; where all must be 100 %, it does not
    assert analysis.paired(failed, decoupled, "nc0", least=0.9)["wd_coupled"].max() == 1
    assert analysis.paired(failed, decoupled, "nc0", least=1.0)["wd_coupled"].max() == 0.1
    assert analysis.paired(coupled, [history("AdamW", 5, 1, diverged=3)], "nc0", least=0).empty


def test_rank_correlation_is_spearmans_within_like_runs():
    rng = np.random.default_rng(0)
    runs, expected = [], []
    for seed in range(3):
        values = rng.random(5)
        runs += [history("SGD", wd, value, seed=seed) for wd, value in zip((0, 0.1, 0.2, 0.3, 0.4), values)]
        expected.append(stats.spearmanr(range(5), values).statistic)
    runs += [history("SGD", 0.5, 99, seed=0, train_acc=0.5), history("SGD", 0.1, 1, seed=7)]  # invalid; alone
    found, groups = analysis.rank_correlation(runs, "nc0")
    assert found == pytest.approx(np.mean(expected)) and groups == 3
    by_momentum = [history("SGD", wd, 1 - m * wd, momentum=m) for wd in (0.1, 0.2) for m in (0, 0.5, 0.9)]
    assert analysis.rank_correlation(by_momentum, "nc0", "momentum") == (pytest.approx(-1), 2)
    with warnings.catch_warnings(action="error"):
        assert np.isnan(analysis.rank_correlation(by_momentum[:2], "nc0", "momentum")[0])


def test_regression_is_least_squares():
    rng = np.random.default_rng(1)
    x = rng.uniform(-5, 1, 40)
    y = 0.5 + 0.16 * x + 0.05 * rng.standard_normal(40)
    runs = [
        history("Adam", 0.1, 10**a, b, lr=0.001 if i % 2 else 0.01, seed=i)
        for i, (a, b) in enumerate(zip(x, y))
    ]
    table = analysis.regression([*runs, history("Adam", 0.1, 1e-9, 9, train_acc=0.5, seed=99)])
    assert list(table.index) == ["LR=0.001", "LR=0.01", "all"] and table["n"].tolist() == [20, 20, 40]
    for label, part in (("LR=0.001", slice(1, None, 2)), ("all", slice(None))):
        fit = stats.linregress(x[part], y[part])
        row, n = table.loc[label], len(x[part])
        half = stats.t.ppf(0.975, n - 2) * fit.stderr
        expected = (
            fit.slope,
            fit.stderr,
            fit.slope / fit.stderr,
            fit.pvalue,
            fit.slope - half,
            fit.slope + half,
        )
        np.testing.assert_allclose(row[["beta", "se", "t", "p", "ci_low", "ci_high"]].astype(float), expected)
        assert row["r2"] == pytest.approx(fit.rvalue**2) and row["f"] == pytest.approx(row["t"] ** 2)
        assert row["r2_adj"] == pytest.approx(1 - (1 - fit.rvalue**2) * (n - 1) / (n - 2))
        assert row["intercept"] == pytest.approx(fit.intercept)
    assert analysis.regression(runs[:2]).empty
    # two at 0.001 are too few, three at 0.01 are not
    assert [*analysis.regression([*runs[1:5:2], *runs[:6:2]]).index] == ["LR=0.01", "all"]


def test_a_ratio_of_medians_is_one_of_medians_unless_asked_of_pairs():
    found = pd.DataFrame({"like": range(5), "x_coupled": [1.0, 2, 4, 8, 16], "x": [8.0, 2, 4, 64, 1]})
    assert analysis.ratio_of_medians(found, "x", resamples=50)[0] == pytest.approx(4 / 4)
    assert analysis.ratio_of_medians(found, "x", pairwise=True, resamples=50)[0] == pytest.approx(1)
    found["x"] = [8.0, 16, 4, 64, 128]  # medians 16 and 4; ratios 8, 8, 1, 8, 8
    assert analysis.ratio_of_medians(found, "x", resamples=50)[0] == pytest.approx(4)
    assert analysis.ratio_of_medians(found, "x", pairwise=True, resamples=50)[0] == pytest.approx(8)


@pytest.mark.parametrize("pairwise", [True, False])
def test_of_few_sets_every_resample_counts_by_its_probability(pairwise):
    """Against all 5^5 ordered draws, two of the five sets with two pairs; and against drawing at random."""
    like, x, y = [0, 1, 2, 3, 4, 0, 1], np.exp([0.3, -0.2, 0.9, 1.7, 0.1, 2.2, 0.6]), np.ones(7)
    y[2:4] = 1.5, 0.7
    found = pd.DataFrame({"like": like, "x": x, "x_coupled": y})
    _, low, high = analysis.ratio_of_medians(found, "x", pairwise)
    logs = np.log(np.stack([x, y], 1))
    of_set = [np.flatnonzero(np.array(like) == k) for k in range(5)]
    ratios = []
    for drawn in itertools.product(range(5), repeat=5):
        one, other = logs[np.concatenate([of_set[k] for k in drawn])].T
        ratios.append(np.median(one - other) if pairwise else np.median(one) - np.median(other))
    ratios = np.exp(np.sort(ratios))
    assert low == pytest.approx(ratios[math.ceil(0.025 * 5**5) - 1])
    assert high == pytest.approx(ratios[math.ceil(0.975 * 5**5) - 1])


def test_of_many_sets_resamples_are_drawn():
    drawn, chance = analysis._resampled(8, 5000, 0)
    assert drawn.shape == (5000, 8) and (drawn.sum(1) == 8).all() and chance.sum() == pytest.approx(1)
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.06)
    again, _ = analysis._resampled(8, 5000, 0)
    assert (drawn == again).all()
    every, chance = analysis._resampled(7, 10, 0)
    assert len(every) == math.comb(13, 7) and chance.sum() == pytest.approx(1)
    np.testing.assert_allclose(chance @ every, 1)


def test_best_and_valid_drop_what_fails_the_filter():
    good, better, failed = (
        history("Adam", wd, 1, nc3, acc) for wd, nc3, acc in ((0, 0.5, 1), (0.1, 0.2, 1), (1, 0.1, 0.9))
    )
    groups = {"Adam": [good, better, failed], "AdamW": [good]}
    assert analysis.best(groups) == {"Adam": better, "AdamW": good}
    assert analysis.valid(groups) == [good, better]


def sgd_and_sgdw(momentum=0, first=1e-3, second=1.1e-3, **fields):
    """A run of SGD and one of SGDW at one decay."""
    pair = (("SGD", first), ("SGDW", second))
    return [history(name, 0.1, nc0, nc3=100 * nc0, momentum=momentum, **fields) for name, nc0 in pair]


def test_sgd_and_sgdw_without_momentum_count_as_one_run():
    sgd, sgdw = sgd_and_sgdw()
    other, moving = history("SGDW", 0.2, 1, momentum=0), sgd_and_sgdw(momentum=0.9)
    assert analysis.once([sgdw, sgd, other, *moving, sgd]) == [sgd, other, *moving]  # SGD stands for both
    assert analysis.valid({"SGDW": [sgdw, other], "SGD": [sgd], "Adam": []}) == [sgd, other]
    failed = history("SGD", 0.1, 1, train_acc=0.9, momentum=0)  # by rounding: the valid one counts
    assert analysis.valid({"SGD": [failed], "SGDW": [sgdw]}) == [sgdw]
    table = analysis.table({"SGD": [sgd, moving[0]], "SGDW": [sgdw, other, moving[1]]})
    assert table["run"].nunique() == 5 and table["same_steps"].nunique() == 4
    assert table["same_steps"].iloc[2] == table["run"].iloc[0] == table["same_steps"].iloc[0]


def test_what_takes_the_same_steps_weighs_once_in_a_regression_and_a_rank_correlation():
    rng = np.random.default_rng(2)
    runs = [
        history("SGD", 0.1, 10**a, b, momentum=0, seed=i) for i, (a, b) in enumerate(rng.normal(size=(9, 2)))
    ]
    copies = [
        history("SGDW", 0.1, 1.01 * h.final["nc0"], h.final["nc3"], momentum=0, seed=h.run.seed)
        for h in runs[:5]
    ]
    for mixed in (runs + copies, copies + runs):
        pd.testing.assert_frame_equal(analysis.regression(mixed), analysis.regression(runs))
    fit = stats.linregress([np.log10(h.final["nc0"]) for h in runs], [h.final["nc3"] for h in runs])
    assert analysis.regression(copies + runs).loc["all", ["n", "beta"]].tolist() == [
        9,
        pytest.approx(fit.slope),
    ]
    by_decay = [history("SGD", wd, 1 - wd, momentum=0) for wd in (0, 0.1, 0.2, 0.3)]
    twin = history("SGDW", 0.3, 99, momentum=0)  # would turn the order, were it another run
    assert analysis.rank_correlation([*by_decay, twin], "nc0") == (pytest.approx(-1), 1)


def test_a_group_whose_metric_does_not_vary_counts_as_none():
    rising = [history("SGD", wd, wd) for wd in (0.1, 0.2, 0.3)]
    level = [history("SGD", wd, 1.0, seed=1) for wd in (0.1, 0.2, 0.3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of a constant
        assert analysis.rank_correlation(rising + level, "nc0") == (1.0, 1)
        assert np.isnan(analysis.rank_correlation(level, "nc0")[0])


def test_captions_and_sentences_count_the_same_steps_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "say", said := [].append)
    kept = [*sgd_and_sgdw(), *sgd_and_sgdw(momentum=0.9)]
    figure = figures.scatter({"SGD": kept[::2], "SGDW": kept[1::2]}, "test")
    assert "Seed 0. 3 runs, none dropped" in figure.provenance
    (tmp_path / "grid.yaml").write_text("entries: [{optimizer: [SGD, SGDW], wd: 0.1, momentum: [0, 0.9]}]")
    for h in kept:
        Store().put(h)
    monkeypatch.setattr(pages, "project_folder", lambda name: tmp_path / name)
    pages.grid_runs("grid.yaml")
    (sentence,) = said.__self__
    assert sentence.startswith(
        "4 runs of `grid.yaml`, 3 of which differ in mathematics (SGD and SGDW take the same"
    )
    assert "), 0 of them fail the paper's filter" in sentence


def test_stored_grid_counts_a_run_without_decay_twice(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "entries: [{optimizer: [AdamW, Adam, SGD], wd: [0, 0.5], epochs: [3, 4]}]"
    )
    store = Store(tmp_path / "runs")
    for h in (
        history("Adam", 0, 1, epochs=3),
        history("AdamW", 0.5, 2, epochs=3),
        history("SGD", 0.5, 3, epochs=4),
    ):
        store.put(h)
    groups, missing = analysis.stored_grid(tmp_path / "grid.yaml", store, epochs=3)
    assert {name: [h.run.wd for h in runs] for name, runs in groups.items()} == {
        "Adam": [0],
        "AdamW": [0, 0.5],
    }
    assert [(run.optimizer, run.wd) for run in missing] == [("Adam", 0.5), ("SGD", 0), ("SGD", 0.5)]


def test_the_table_has_a_row_a_run_and_label():
    plain, decayed = history("Adam", 0, 2.0, lr=0.005), history("AdamW", 0.5, 3.0, diverged=7)
    table = analysis.table({"Adam": [plain], "AdamW": [plain, decayed], "SGD": []})
    assert table["label"].tolist() == ["Adam", "AdamW", "AdamW"]
    assert table["optimizer"].tolist() == ["Adam", "Adam", "AdamW"] and table["run"].nunique() == 2
    assert table["wd"].tolist() == [0, 0, 0.5] and table["nc0"].tolist() == [2, 2, 3]
    assert table["lr"].tolist() == [0.005, 0.005, 0.01] and table["valid"].tolist() == [True, True, False]


def test_nothing_is_found_where_nothing_is_stored():
    assert analysis.pairs([], [], "nc0") == (0, 0) and analysis.best({}) == {}
    assert analysis.rank_correlation([], "nc0")[1] == 0 and analysis.regression([]).empty
    some = analysis.paired([history("Adam", 0.1, 1)], [history("AdamW", 0.1, 1)], "nc0")
    of_none = analysis.paired([], [], "nc0", "nc4_test")
    assert of_none.empty and {*of_none} - {*some} == {"nc4_test", "nc4_test_coupled"} and {*some} < {*of_none}


def test_decay_budget():
    h = history("SGDW", 0.5, 1, lr=0.1, epochs=30, batch_size=30)  # 4 steps an epoch
    assert decay_budget(h) == pytest.approx(0.5 * 0.1 * 4 * 10 * 1.11)


def test_figures_draw_means_and_leave_out_what_fails(monkeypatch):
    runs = [history("Adam", 0.1, nc0, seed=s) for s, nc0 in ((0, 1.0), (1, 3.0))]
    runs += [history("Adam", 1, 0.5), history("Adam", 10, 1e-3, train_acc=0.3)]
    figure = figures.decay_sweep({"Adam": runs, "AdamW": []}, "test")
    axis = figure.axes[0]
    assert axis.lines[0].get_xdata().tolist() == [0.1, 1] and axis.lines[0].get_ydata().tolist() == [2, 0.5]
    text = figure.provenance
    assert "4 runs, 1 of them fails the paper's filter (1 under 99 % training accuracy, 0 diverged)" in text
    nothing = figures.scatter({"Adam": [runs[-1]]}, "test", fit=True)
    assert all(axis.texts[0].get_text() == "no valid run" for axis in nothing.axes)
    heat = figures.heat_maps(
        [history("SGD", w, 1 / (1 + w), momentum=m) for w in (0, 1) for m in (0, 0.9)], "test"
    )
    assert [t.get_text() for t in heat.axes[0].texts] == ["1", "0.5"] * 2
    dead = history("SGD", 10, 0.0, train_acc=0.1)
    dead.frame[["nc2", "nc3"]] = np.nan
    heat = figures.heat_maps([history("SGD", 1, 0.5), dead], "test")
    assert [[t.get_text() for t in axis.texts] for axis in heat.axes[:2]] == [["0.5", "0"], ["1", "–"]]
    table = tables.final_table({"Adam": runs[:1], "Signum": runs[2:3]}, {"Adam": dict.fromkeys(COLUMNS, 1.5)})
    assert table.loc["Adam", ("NC0", "paper")] == "1.5" and table.loc["Signum", ("NC0", "paper")] == "–"


def test_the_paper_beside_runs_here_number_by_number():
    paper = {"Adam": {"nc0": 2.0, "nc3": 1.5}, "SGD": {"nc0": 1.0, "nc3": 1.0}}
    wide, low = history("Adam", 0.1, 1.0, seed=3141), history("Adam", 0.1, 8.0, seed=7, train_acc=0.5)
    table = tables.beside_paper(
        {"width 64": {"Adam": [wide, low]}}, paper, {"Adam": {"nc0": -80.6, "nc3": None}}
    )
    assert [*table.index] == [("Adam", "NC0"), ("Adam", "NC3")]  # no run of SGD
    row = table.loc[("Adam", "NC0")]
    change = 1.0 / wide.frame["nc0"].iloc[0] - 1
    assert row["paper"] == "2 (\N{MINUS SIGN}80.6\N{NO-BREAK SPACE}%)" and row["width 64, ratio"] == "0.50"
    assert row["width 64"].startswith("1 (") and f"{abs(100 * change):.1f}" in row["width 64"]
    assert row["width 64, seed 7, ratio"] == "4.00" and row["width 64, seed 7"].endswith(
        ", fails the filter)"
    )
    every = {name: dict.fromkeys(COLUMNS, value) for name, value in (("Adam", 2.0), ("SGD", 1.0))}
    axis = figures.beside_paper({"width 64": {"Adam": [wide, low]}}, every).axes[0]
    crosses, joins, runs = axis.lines
    assert (crosses.get_label(), [*crosses.get_xdata()]) == ("paper", [2.0])
    assert [*joins.get_xdata()] == [2.0, 1.0] and [*runs.get_xdata()] == [1.0]  # the dropped run is not drawn


def test_nothing_is_averaged_over_a_run_that_diverged():
    """Its curve breaks off at a last good row that looks like a result."""
    good, bad = history("SGD", 0.1, 2.0), history("SGD", 0.1, 1e6, seed=1, diverged=7)
    for draw in (figures.training_curves, figures.decay_sweep, figures.scatter):
        figure = draw({"SGD": [good, bad]}, "test")
        drawn = [y for line in figure.axes[0].lines for y in np.atleast_1d(line.get_ydata())]
        drawn += (
            [y for c in figure.axes[0].collections for y in c.get_offsets()[:, 1]]
            if draw is figures.scatter
            else []
        )
        assert drawn and max(drawn) < 3, draw.__name__
        assert "1 diverged" in figure.provenance
    table = tables.final_table({"SGD": [good, bad], "SGDW": [bad]}, {})
    assert table.loc["SGD", ("NC0", "here")].startswith("2<br>(") and "1 of 2 dropped" in str(
        table.loc["SGD"].iloc[-1]
    )
    assert table.loc["SGDW", ("NC0", "here")] == "diverged"
    assert analysis.best({"SGD": [bad]}) == {} and analysis.valid({"SGD": [good, bad]}) == [good]


def test_runs_whose_head_decays_by_itself_take_steps_of_their_own():
    """Without momentum both decays are one step, but not where the head's is one and the backbone's the other."""
    sgdw = Run.named("SGDW", 0.1, momentum=0)
    assert same_steps(sgdw) == same_steps(Run.named("SGD", 0.1, momentum=0))
    for head in ({"head_decoupled_wd": 0.5}, {"head_coupled_wd": 0.5}, {"head_decoupled_wd": 0.0}):
        run = sgdw.model_copy(update=head)
        assert same_steps(run) == run


def test_values_that_are_not_known_are_no_largest_ones():
    x, coupled = [np.nan, np.nan, np.nan, 1, 1, 2, 2], [1.0] * 7
    found = pd.DataFrame({"like": range(7), "x": x, "x_coupled": coupled})
    assert analysis.ratio_of_medians(found, "x", resamples=10)[0] == pytest.approx(2**0.5)
    runs = [history("Adam", wd, 1, nc3) for wd, nc3 in ((0, np.nan), (0.1, 0.5), (1, 0.1))]
    assert analysis.best({"Adam": runs})["Adam"].run.wd == 1
    assert [h.run.wd for h in analysis.best_of_each(runs)] == [1]
    decoupled = [history("AdamW", 1, np.nan), history("AdamW", 2, 3.0)]
    assert analysis.pairs(runs, decoupled, "nc0") == (1, 1)


def test_an_interval_draws_whole_networks_and_data_where_there_are_five():
    likes = [
        analysis.like(Run(arch=arch, dataset=data, seed=seed))
        for arch in ("resnet9", "vgg9", "mlp") for data in ("MNIST", "FashionMNIST") for seed in range(20)
    ]  # fmt: skip
    of_pair = np.repeat([0.5, 1, 2, 4, 8, 16], 20)
    found = pd.DataFrame({"like": likes, "x": of_pair, "x_coupled": 1.0})
    _, low, high = analysis.ratio_of_medians(found, "x")
    assert low <= 1 and high >= 8  # six of six, not 120 of 120
    _, low, high = analysis.ratio_of_medians(found[20:60], "x")  # two pairs: seeds
    assert low >= 1 and high <= 4


def test_names_that_no_run_has_are_refused():
    found = [history("Adam", wd, 1) for wd in (0.1, 0.2, 0.3)]
    for call in (
        lambda: analysis.rank_correlation(found, "ncX"),
        lambda: analysis.regression(found, "ncX"),
        lambda: analysis.paired(found, found, "ncX"),
    ):
        with pytest.raises(ValueError, match="column 'ncX' is not allowed: no run has it"):
            call()
    with pytest.raises(ValueError, match="along = 'momentumm' is not allowed"):
        analysis.rank_correlation(found, "nc3", along="momentumm")


@pytest.mark.parametrize(("within", "least", "most"), [(0.0, 0.9, 0.99), (1.0, 0.8, 0.92)])
def test_intervals_of_six_networks_are_narrower_than_their_name(within, least, most):
    """Chapter 22 says how often they hold the true value: 85 to 96 %, by how much pairs of one network differ."""
    rng, of = np.random.default_rng(1), np.repeat(np.arange(6), 3)
    counts, chance = analysis._resampled(6, 2000, 0)
    held = []
    for _ in range(400):
        values = rng.normal(size=6)[of] + within * rng.normal(size=18) + 1e-9 * rng.normal(size=18)
        medians = analysis._medians(values, counts[:, of])
        low, high = np.percentile(medians, [2.5, 97.5], weights=chance, method="inverted_cdf")
        held.append(low <= 0 <= high)
    assert least < np.mean(held) < most
