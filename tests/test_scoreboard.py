"""The scoreboard and the manifest say what the shipped results say, and nothing is typed by hand."""

import itertools
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from statsmodels.stats.multitest import multipletests

from ncutils import analysis
from ncutils.__main__ import main
from ncutils.book import claims, manifest, published, scoreboard, verdicts
from ncutils.book.verdicts import Counted, Statement
from ncutils.optimizers import OPTIMIZERS
from ncutils.store import Store, read_grid
from tests.test_analysis import history
from tests.test_bad_input import NAMED, PLAIN

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "chapters/intro.md", "chapters/scoreboard.md", "chapters/verdict.md")


LOCAL = history("AdamW", 0.123, 9.9)
NO_RUNS = analysis.table(analysis.with_gauge_fixed({"": []})).drop(columns="label")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The table of the results that ship, where a local run is stored, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCUTILS_RUNS", str(tmp_path_factory.mktemp("local")))
        Store().put(LOCAL)
        return claims.shipped_runs()


@pytest.fixture(scope="module")
def board(stored):
    return scoreboard.board(stored)


@pytest.fixture
def pages(tmp_path):
    (tmp_path / "chapters").mkdir()
    for name in PAGES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_local_runs_are_not_judged(stored):
    assert len(stored) > 900 and LOCAL.run.hash not in {*stored["run"]}


def test_a_chapters_runs_are_its_own(stored):
    """Not the ablation's, of another network and other seeds, which agree with them in all else."""
    of_vit = stored[(stored["arch"] == "vit") & (stored["n_train"] == 1000)]
    assert {*of_vit["net"]} > {"book"} and {*of_vit["seed"]} > {0}
    runs, p = claims._chapter(stored, "15_vit", 3, arch="vit")
    assert {*runs["net"]} == {"book"} and {*runs["seed"]} == {0}
    for name, decays in p["wd"].items():
        assert {*runs.loc[runs["label"] == name, "wd"]} == {*map(float, decays)}
    runs, p = claims._chapter(stored, "03_adamw", 6, diverged_epoch=None)
    assert {*runs["seed"]} == {0, 1, 2} and p["n_seeds"] == 3


def test_the_pages_hold_what_the_results_give(stored, board, pages, monkeypatch):
    monkeypatch.setattr("ncutils.book.claims.shipped_runs", lambda: stored)
    monkeypatch.setattr("ncutils.book.scoreboard.board", lambda _: board)
    monkeypatch.setattr("ncutils.__main__.project_folder", lambda name: pages / name)
    assert main(["scoreboard"]) == 0
    for name in PAGES:
        assert (pages / name).read_bytes() == (ROOT / name).read_bytes(), (
            f"run `python -m ncutils scoreboard`: {name}"
        )


def test_the_pages_are_read_and_written_as_utf_8_whatever_the_locale(stored, board, pages, tmp_path):
    for name in PAGES:
        text = (pages / name).read_text("utf-8").replace("<!-- end of", f"{NAMED}\n<!-- end of")
        (pages / name).write_text(f"{NAMED}\n{text}", "utf-8")
    (tmp_path / "found").write_bytes(pickle.dumps((stored, board)))
    code = f"""
import pickle
from pathlib import Path
from ncutils.book import claims, scoreboard
stored, board = pickle.loads(Path({str(tmp_path / "found")!r}).read_bytes())
claims.shipped_runs, scoreboard.board = lambda: stored, lambda _: board
scoreboard.write(Path({str(pages)!r}))
"""
    environment = os.environ | PLAIN | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert not done.returncode, done.stderr
    for name in PAGES:
        assert (pages / name).read_text("utf-8") == f"{NAMED}\n{(ROOT / name).read_text('utf-8')}"


@pytest.mark.parametrize("n", [3, 22])
def test_an_interval_of_comparisons_that_all_agree_ends_at_one(n):
    """Also where n of n times an effective number is rounded up."""
    for effective in (1.851680266281845, *np.random.default_rng(0).uniform(0.5, n, 1000)):
        counted = Counted(n, n, float(effective), 2)
        assert counted.interval[1] == 1 and 0 < counted.interval[0] < 1 and 0 < counted.p <= 1


def test_a_pooled_statement_is_decided_by_networks_and_data_sets_too():
    def counted(k, networks):
        return Counted(k, 50, 50.0, 12, networks)

    of_six = [Counted(k, 6, 6.0, 6) for k in range(7)]
    assert [counted(48, c).verdict() for c in of_six[4:]] == ["not decided", "not decided", "supported"]
    assert [counted(2, c).verdict() for c in of_six[:3]] == ["against", "not decided", "not decided"]
    assert counted(48, None).verdict() == "supported" and counted(30, of_six[6]).verdict() == "mixed"
    like = [(("arch", arch), ("dataset", "digits"), ("seed", s)) for arch in "abc" for s in range(4)]
    way = pd.Series([True] * 3 + [False] + [True, True, False, False] + [False] * 4)
    found = verdicts.by_network(
        pd.Series(like), way
    )  # b's comparisons are even: as in the sign test, it does not count
    assert (found.k, found.n, found.networks) == (1, 2, None)


@pytest.mark.parametrize("pooled", [False, True])
def test_only_pooled_statements_ask_networks(pooled):
    likes = [(("arch", arch), ("dataset", "digits"), ("seed", s)) for arch in "ab" for s in range(20)]
    names = {"one": [f"one {i}" for i in range(40)], "other": [f"other {i}" for i in range(40)]}
    found = pd.DataFrame({"like": likes} | names | {"value": 1.0, "fixed": [-1.0] * 20 + [1.0] * 20})
    counted = Statement("pooled", found, pooled=pooled).counted()
    assert counted.verdict() == ("not decided" if pooled else "supported")  # of two networks two say little
    fixed = Statement("pooled", found, pooled=pooled).counted(column="fixed")
    assert (fixed.networks and (fixed.networks.k, fixed.networks.n)) == ((1, 2) if pooled else None)
    # without a comparison there is no count, and of networks none
    table = pd.DataFrame({"statement": [Statement("none", pooled=pooled)], "family": "one"})
    (row,) = verdicts.judged(table).itertuples()
    assert row.verdict == "not run" and "networks" not in scoreboard._evidence({"none": row})


def test_the_cards_say_what_was_not_run(board):
    none = claims.Seen("", [], pd.DataFrame())
    words = scoreboard.facts(board, none, none)
    assert (
        "At the paper's own, of Table 1: none.\n" in words and "\nImageNet. The grid of 3,888 runs" in words
    )
    judged = board.assign(verdict=board["verdict"].mask(board["page"] == "16_imagenet", "mixed"))
    assert "\nThe grid of 3,888 runs" in scoreboard.facts(judged, none, none)


def test_the_verdict_is_right_for_other_boards_too(board):
    """What the shipped runs do not show: statements against the paper, sentences whose parts differ, nothing to compare."""
    (*_, last), n = scoreboard.verdict(board).items(), (board["verdict"] == "against").sum()
    goes = "goes" if n == 1 else "go"
    assert last[0].startswith(f"Of {len(board)} statements {n} {goes} against the paper")
    other = board.assign(verdict=board["verdict"].replace("against", "mixed"))
    *_, last = scoreboard.verdict(other).items()
    assert last[0].startswith(f"Of {len(board)} statements 0 go against the paper")
    assert "The table lists statements that go the other way as clearly" in last[1]
    falls = {
        c: other["statement"].map(lambda s, c=c: s.says) == f"{c} of SGD and Signum falls with decay"
        for c in ("NC0", "NC3")
    }
    pooled = other["statement"].map(lambda s: s.pooled)
    for c, verdict in (("NC0", "supported"), ("NC3", "mixed")):
        other.loc[falls[c] & pooled, "verdict"] = verdict
    against = other.index[(other["verdict"] == "supported") & (other["item"] == "Figure 7")][0]
    other.loc[against, "verdict"] = "against"
    first, *_, last = scoreboard.verdict(other).items()
    assert first[0].endswith("supported or mixed (NC3 with the gauge fixed: supported)")
    assert last[0].startswith(f"Of {len(board)} statements 1 goes against the paper")
    assert "The table lists first what goes against the paper, then statements" in last[1]
    assert f"| {other['statement'][against].says} ([Figure 7]" in last[1]
    none = board[board["counted"].map(lambda c: not c.n)].iloc[0]
    assert scoreboard.fixed(none) == "" and scoreboard.usual_scale(board.assign(scale="")) == ""


def test_an_interval_says_on_which_side_of_one_half_it_ends():
    assert scoreboard.share(Counted(8, 8, 5.33, 4)) == "8 of 8 (50.1 to 100 %)"
    assert scoreboard.share(Counted(6, 6, 6.0, 6)) == "6 of 6 (54 to 100 %)"


THRESHOLDS = ("MINORITY", "LEVEL", "FEWEST", "CLOSE", "STILL", "MUCH", "UNRELATED", "ACCURACY")


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_threshold_does_not_move_without_the_page(monkeypatch, threshold):
    page = (ROOT / "chapters/scoreboard.md").read_text("utf-8")
    assert scoreboard.rule() in page
    monkeypatch.setattr(verdicts, threshold, 2 * getattr(verdicts, threshold))
    assert scoreboard.rule() not in page


def test_every_threshold_is_on_the_page():
    assert {
        name for name, v in vars(verdicts).items() if name.isupper() and isinstance(v, float | int)
    } == set(THRESHOLDS)


def test_every_figure_and_table_has_a_line_and_a_page():
    figures, tables = ([f"{kind} {i}" for i in range(1, n + 1)] for kind, n in (("Figure", 45), ("Table", 5)))
    named = [
        f"{kind} {i}"
        for item in claims.CLAIMS["item"]
        for kind, numbers in [re.fullmatch(r"(Figure|Table)s? (.*)", item).groups()]
        for i in re.findall(r"\d+", numbers)
    ]
    assert set(named) == set(figures + tables)
    assert list(dict.fromkeys(n for n in named if named.count(n) == 1)) and len(named) == 50 + 5 * 6 + 2
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    pages = {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert {f"chapters/{page}" for page in claims.CLAIMS["page"]} <= pages


def compared(values, one=None, other=None, like=None, **how) -> Statement:
    n = len(values)
    found = {
        "like": like or range(n),
        "one": one or [f"a{i}" for i in range(n)],
        "other": other or [f"b{i}" for i in range(n)],
    }
    return Statement("", pd.DataFrame(found | {"value": values, "fixed": values}), **how)


@pytest.mark.parametrize(
    ("k", "n", "verdict"),
    [
        (0, 0, "not run"),
        (3, 3, "not decided"),  # 29 to 100 %: an even split and a clear majority
        (5, 5, "not decided"),  # 48 to 100 %
        (6, 6, "supported"),  # 54 to 100 %
        (8, 10, "not decided"),  # 44 to 97 %
        (16, 20, "supported"),  # 56 to 94 %
        (15, 20, "mixed"),  # 51 to 91 %, under 80 %
        (50, 100, "mixed"),  # 40 to 60 %
        (4, 20, "against"),
        (0, 6, "against"),
    ],
)  # fmt: skip
def test_verdicts(k, n, verdict):
    counted = Counted(k, n, n, n)
    assert counted.verdict() == verdict
    opposite = {"supported": "against", "against": "supported"}
    assert not n or Counted(n - k, n, n, n).verdict() == opposite.get(verdict, verdict)
    if n > 3:  # one setting and seed decides nothing
        assert Counted(k, n, n, 1).verdict() == "not decided"


def test_the_interval_is_exact_and_its_test_that_of_one_half():
    for k, n in ((3, 7), (10, 10), (0, 4), (5, 10)):
        found = stats.binomtest(k, n)
        counted = Counted(k, n, n, n)
        assert counted.interval == pytest.approx(tuple(found.proportion_ci()), abs=1e-9)
        assert counted.p == pytest.approx(found.pvalue)
    # four coins fall alike once in eight throws
    assert Counted(4, 4, 4, 4).p == pytest.approx(1 / 8)
    # half as many independent ones: the interval of 4 in 4
    assert Counted(8, 8, 4, 4).interval == Counted(4, 4, 4, 4).interval


def test_comparisons_that_share_runs_count_as_many_as_vary_as_much_by_chance():
    pairs = [(a, b) for a in range(6) for b in range(a)]
    one, other = map(list, zip(*pairs))
    star, twice = ([0, 1, 2], [3, 3, 3]), (one + [a + 10 for a in one], other + [b + 10 for b in other])
    rng = np.random.default_rng(0)
    for ends in ((one, other), star, twice, ([0, 2, 4], [1, 3, 5]), ([0, 0, 1, 1], [2, 3, 2, 3])):
        n, values = len(ends[0]), rng.random((100_000, 20))
        counts = (values[:, ends[0]] < values[:, ends[1]]).sum(1)
        counted = compared([1.0] * n, *ends).counted()
        assert counted.n == n and counted.effective == pytest.approx(n**2 / (4 * counts.var()), rel=0.02)
    # what two measurements differ by, beside what two others did: eight contrasts of twelve measurements, normal ones
    ends = np.array(list(itertools.product(range(2), range(2), range(2)))) + [0, 2, 4]
    table = compared([1.0] * 8, ends[:, 0].tolist(), ends[:, 1].tolist()).found
    table = table.assign(one_before=ends[:, 2], other_before=[6, 6, 7, 7, 6, 6, 7, 7])
    x = rng.normal(size=(100_000, 8))
    at = [x[:, table[name].astype(int)] for name in ("one", "other", "one_before", "other_before")]
    counts = (at[0] - at[1] > at[2] - at[3]).sum(1)
    assert verdicts.effective(table) == pytest.approx(64 / (4 * counts.var()), rel=0.02)
    # Kendall's variance of his sum of signs, 6 * 5 * 17 / 18, is four times that of the count
    assert compared([1.0] * 15, one, other).counted().effective == pytest.approx(225 / (6 * 5 * 17 / 18))
    # the same comparison twice says no more; a chain would vary less than independent ones, and counts as these
    assert compared([1.0] * 2, [0, 0], [1, 1]).counted().effective == pytest.approx(1)
    assert compared([1.0] * 2, [0, 1], [1, 2]).counted().effective == 2
    assert compared([np.nan]).counted().effective == verdicts.effective(compared([]).found) == 0


def test_a_set_is_a_network_a_data_set_and_a_seed():
    runs = [
        history("SGD", 0.1, 1.0, momentum=m, lr=lr, seed=s) for m in (0, 0.9) for lr in (1, 2) for s in (0, 1)
    ]
    alike = [analysis.like(h.run) for h in runs]
    assert len(set(alike)) == 8 and verdicts.sets(alike) == 2
    assert (
        verdicts.sets([analysis.like(h.run.model_copy(update={"arch": "vgg9"})) for h in runs] + alike) == 4
    )
    assert verdicts.sets([0, 1, 1]) == 2


def test_what_goes_the_papers_way():
    values = [np.log(3.0), np.log(1.5), -np.log(1.5), -np.log(3.0), np.nan]
    assert (compared(values).counted().k, compared(values).counted().n) == (2, 4)
    assert compared(values, factor=2.0).counted().k == 1
    assert compared(values, factor=2.0).counted(times=2).k == 0
    assert compared(values, factor=2.0, within=True).counted().k == 2
    assert compared(values, factor=2.0, within=True).counted(times=2).k == 4
    on_the_line = [np.log(2.0), -np.log(2.0)]  # neither above it nor within
    assert compared(on_the_line, factor=2.0).counted().k == 0
    assert compared(on_the_line, factor=2.0, within=True).counted().k == 0
    middle, low, high = compared([np.log(2.0)] * 6).effect()
    assert middle == pytest.approx(2) and low == pytest.approx(2) and high == pytest.approx(2)
    assert np.isnan(compared([1.0] * 6, ratios=False).effect()).all()


def test_the_last_column_says_where_a_threshold_decides():
    assert verdicts.moves(compared([1.0] * 20)) == ""
    assert verdicts.moves(compared([1.0] * 17 + [-1.0] * 3)) == "mixed where 10 % may go the other way"
    near = compared([np.log(3.0)] * 6, factor=2.0, within=True)
    assert verdicts.moves(near) == "supported with a factor of 4"


def test_holm_corrects_within_a_family():
    rows = [("one", compared([1.0] * n)) for n in (4, 9)] + [("other", compared([1.0] * 4))]
    table = verdicts.judged(pd.DataFrame(rows, columns=["family", "statement"]))
    p4, p9 = Counted(4, 4, 4, 4).p, Counted(9, 9, 9, 9).p
    assert table["p"].tolist() == pytest.approx([p4, 2 * p9, p4])
    p = pd.Series(np.random.default_rng(0).beta(0.3, 2, 40).round(2), index=range(40, 80))  # ties, too
    assert verdicts.holm(p)[p.index].to_numpy() == pytest.approx(multipletests(p, method="holm")[1])


def test_closeness_has_no_law_of_chance():
    """Nothing says how often two values lie within a factor, or one on a side of a line, where there is nothing to find."""
    line = claims._true("above a line", range(9), range(9), [True] * 9)
    rows = [
        ("one", compared([0.1] * 9, factor=2.0, within=True)),
        ("one", line),
        ("one", compared([1.0] * 9)),
    ]
    table = verdicts.judged(pd.DataFrame(rows, columns=["family", "statement"]))
    assert table["p"].isna().tolist() == [True, True, False]
    assert table["p"].iloc[-1] == pytest.approx(Counted(9, 9, 9, 9).p)  # alone in its family
    assert set(table["verdict"]) == {"supported"}


@pytest.mark.parametrize(
    "figures", [(1, 19, 24, 29, 34, 39), (3, 20, 25, 30, 35, 40), (10, 23, 28, 33, 38, 43)]
)
def test_a_figure_of_the_main_text_and_its_five_counterparts_are_one_family(figures):
    items = {f"Figure {n}" for n in figures}
    assert claims.CLAIMS.loc[claims.CLAIMS["item"].isin(items), "family"].nunique() == 1


def test_a_store_without_runs_has_only_lines_that_were_not_run():
    table = scoreboard.board(NO_RUNS)
    assert len(table) == len(claims.CLAIMS) and set(table["verdict"]) == {"not run"}
    said = set(table["sees"]) - {"no run of this setting is stored", "0 of the six runs are stored"}
    assert not said and set(table["scale"]) == {""}
    assert len(scoreboard.verdict(table)) == 6


def test_a_judge_that_fails_is_no_claim_that_was_not_run(monkeypatch):
    def looks(judge):
        monkeypatch.setattr(claims, "CLAIMS", claims.CLAIMS.head(1).assign(look=[judge]))
        return scoreboard.board(NO_RUNS)

    def not_run(stored):
        raise claims.NotRun("this one needs a telescope")

    found = looks(not_run).iloc[0]
    assert (found["verdict"], found["sees"]) == ("not run", "this one needs a telescope")
    with pytest.raises(KeyError, match="no such column"):
        looks(lambda stored: stored["no such column"])
    with pytest.raises(IndexError):
        looks(lambda stored: stored.iloc[0])


def test_the_papers_order_in_the_shipped_runs(board):
    """The signs that the book rests on, from the stored runs: not eyeballed."""
    verdict = {(r.item, r.statement.says): (r.verdict, r.fixed_verdict) for r in board.itertuples()}
    both = ("supported", "supported")
    for item, says in (
        ("Figure 5", "decoupled above coupled in NC3"),
        ("Figure 7", "NC3 of the mixed rule falls with the coupled share"),
        ("Figures 3, 20, 25, 30, 35, 40", "NC3 of SGD and Signum falls with decay"),
    ):
        assert verdict[item, says] == both, says
    for item, pair, expected in (
        ("Figures 3, 20, 25, 30, 35, 40", "SignumW above Signum", ("supported", "not decided")),
        ("Figures 1, 19, 24, 29, 34, 39", "AdamW above Adam", ("not decided", "not decided")),
    ):
        acted = claims.ACTED.format(pair.split()[0])
        assert verdict[item, f"{pair} in NC3, {claims.AT_BEST}"] == expected
        assert verdict[item, f"{pair} in NC3, {acted}"] == expected
        assert verdict[item, f"{pair} in NC0, {acted}"][0] == "supported"
    assert verdict[
        "Figures 10, 23, 28, 33, 38, 43", "NC3 is larger where NC0 is, over all learning rates"
    ] == ("supported", "mixed")
    # no run of it has a decay budget of 1
    assert verdict["Figure 8", "NC0 of SignGDW settles in the last third"][0] == "not run"
    assert verdict["Table 4", "the best decay is larger where decoupled"][0] == "not run"


def test_pairs_are_counted_as_the_grid_has_them(board, stored):
    """AdamW above Adam in NC3 in the six settings: paired here anew from the table."""
    alike = ["arch", "dataset", "lr", "momentum", "seed"]
    names = {run.hash for _, run in read_grid(ROOT / "params/laptop/grid.yaml")}
    runs = stored[stored["run"].isin(names) & stored["valid"] & (stored["rule"] == "adam")]
    ways = {True: [], False: []}
    for _, run in runs[runs["decoupled_wd"] > 0].iterrows():
        coupled = runs[
            (runs[alike] == run[alike]).all(axis=1) & runs["coupled_wd"].between(1e-9, run["decoupled_wd"])
        ]
        if len(coupled):
            ways[run["budget"] >= 1].append(run["nc3"] > coupled.loc[coupled["coupled_wd"].idxmax(), "nc3"])
    for acted, words in (
        (True, "AdamW's decay has acted (budget 1 or more)"),
        (False, "AdamW's decay has acted little (budget under 1)"),
    ):
        counted = next(
            r.counted for r in board.itertuples()
            if r.item.startswith("Figures 1, 19") and r.statement.says == f"AdamW above Adam in NC3, {words}"
        )  # fmt: skip
        assert (counted.k, counted.n) == (sum(ways[acted]), len(ways[acted])) and counted.n > 10


def test_the_papers_filter_is_one_of_the_filters(board, stored):
    table = claims.filters(stored)
    for (_, row), c in zip(table.head(2).iterrows(), ("NC0", "NC3"), strict=True):
        acted, not_ = (
            r.counted
            for r in board.itertuples()
            if r.item.startswith("Figures 1, 19")
            and f"{c}, " in r.statement.says
            and "budget" in r.statement.says
        )
        assert row["99 %"] == f"{acted.k + not_.k} of {acted.n + not_.n}"


def test_table_1_by_the_papers_protocol_is_judged_once_its_six_runs_are_there(stored):
    look = claims.CLAIMS.set_index("says")["look"][
        "the same with the paper's images and epochs and inferred rates, at width 8"
    ]
    six = read_grid(ROOT / "params/protocol/grid.yaml")[:6]
    assert {name for name, _ in six} == set(OPTIMIZERS)
    like_them = (
        stored[(stored["arch"] == "resnet9") & stored["valid"]]
        .groupby("optimizer")
        .head(1)
        .set_index("optimizer")
    )
    rows = [
        like_them.loc[name].to_dict() | {"run": run.hash, "wd": run.wd, "momentum": 0.9, "seed": 3141}
        for name, run in six
    ]
    table = pd.DataFrame(rows)
    seen = claims.look(look, table)
    for statement, c in zip(seen.statements, ("nc0", "nc1", "nc2", "nc3"), strict=True):
        here = {name: table.set_index("run").loc[run.hash, c] for name, run in six}
        theirs = {name: published.TABLE1[name][c] for name, _ in six}
        pairs = [(a, b) for a in theirs for b in theirs if theirs[a] < theirs[b]]
        counted = statement.counted()
        assert (counted.k, counted.n) == (sum(here[a] < here[b] for a, b in pairs), len(pairs))
        assert counted.effective <= 8 and counted.verdict() == "not decided"  # one seed
    assert claims.look(look, table.head(5)).text == "5 of the six runs are stored"


def test_runs_at_the_papers_width_are_compared_with_its_values_one_by_one(stored):
    rows = stored[(stored["width"] == 64) & (stored["images"] == 60_000) & (stored["wd"] == 0.0005)]
    assert {"Adam", "AdamW"} <= {*rows["optimizer"]} and set(rows["seed"]) == {3141}
    seen = claims.look(claims.table1_at_its_width, stored)
    assert {*seen.runs["run"]} == {*rows["run"]}
    for statement, c in zip(seen.statements, ("nc0", "nc1", "nc2", "nc3"), strict=True):
        ratios = [run[c] / published.TABLE1[run["optimizer"]][c] for _, run in rows.iterrows()]
        counted = statement.counted()
        assert (counted.k, counted.n) == (sum(0.5 < r < 2 for r in ratios), len(ratios))
        assert counted.verdict() == "not decided"  # one seed
        assert all(f"{r:.2f}" in seen.text for r in ratios)
    # the digest on the first page
    assert seen.text in (ROOT / "chapters/intro.md").read_text("utf-8")
    none = claims.look(claims.table1_at_its_width, stored[stored["width"] < 64])
    assert none.text == "0 of the six runs are stored" and not none.statements


def test_the_first_sentence_of_the_book_is_what_the_runs_say(board, stored):
    """How far NC0 falls by where Adam's and Signum's decay enters, and that a gap stays in most pairs with the gauge
    fixed, though not on all networks and data sets."""
    text = (ROOT / "chapters/intro.md").read_text("utf-8")
    grid = claims._entries("laptop").merge(stored.query("valid and wd > 0"), on=["run", "arch", "dataset"])
    start = np.array([h.frame["nc0"].iloc[0] for h in grid["history"]])
    lowest = grid.assign(of=grid["nc0"] / start).groupby(["arch", "dataset", "label"])["of"].min().unstack()
    assert len(lowest) == 6 and (lowest["Adam"] < lowest["AdamW"]).all()
    assert (lowest["Signum"] < lowest["SignumW"]).all()
    coupled = lowest[["Adam", "Signum"]]
    copy = coupled.index.get_level_values("dataset") == "cifar10-jpeg"
    ends = [f"{of.min(axis=None):.2g} to {of.max(axis=None):.2g}" for of in (coupled[~copy], coupled[copy])]
    ends = "({} of its start on MNIST and FashionMNIST, {} on CIFAR-10)".format(*ends)
    assert f"enters through the gradient {ends} than where it acts on the weights" in text
    vit = stored.query("valid and wd > 0 and arch == 'vit' and net == 'book' and width == 8")
    of_vit = vit[vit["optimizer"].isin(["Adam", "AdamW"])].groupby("optimizer")["nc0"].min()
    assert of_vit["AdamW"] < of_vit["Adam"] and "in a small vision transformer not" in text
    together = board[board["claim"].str.startswith("the six settings together")]
    statements, shares = {r.statement.says: r for r in together.itertuples()}, []
    for pair in ("AdamW above Adam", "SignumW above Signum"):
        acted = claims.ACTED.format(pair.split()[0])
        assert statements[f"{pair} in NC0, {acted}"].verdict == "supported"
        for words in (acted, claims.AT_BEST):
            fixed = statements[f"{pair} in NC3, {words}"].fixed
            shares.append(100 * fixed.k / fixed.n)
            assert (
                shares[-1] > 50 and fixed.networks.k < 6
            )  # "in most pairs of runs", the page's first sentence says
    least, most = min(shares), max(shares)
    assert (
        f"leaves the rows of $W$ less aligned with the class means in {least:.0f} to {most:.0f} % of pairs of runs, though not in all six"
        in text
    )


def board_rows(page: str) -> list[dict]:
    """The statements of the scoreboard's page: verdict, words, count, and what is folded behind it, read back from its HTML."""
    rows = []
    for attributes, inner in re.findall(r'<li class="statement" ([^>]*)>(.*?)</li>', page):
        row = dict(re.findall(r'data-(\w+)="([^"]*)"', attributes))
        row["chip"] = re.search(r'<span class="chip [\w-]+">([^<]*)</span>', inner)[1]
        row |= dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", inner))
        row["count"] = (re.findall(r'<span class="count">([^<]*)</span>', inner) or [""])[0]
        rows.append(row)
    return rows


def test_the_page_holds_every_statement_verdict_first_with_its_figure(board):
    page = (ROOT / "chapters/scoreboard.md").read_text("utf-8")
    rows = board_rows(page)
    assert [r["chip"] for r in rows] == [r["verdict"] for r in rows] == board["verdict"].tolist()
    for shown, row in zip(rows, board.itertuples(), strict=True):
        assert shown["count"] == (f"{row.counted.k:,} of {row.counted.n:,}" if row.counted.n else "")
        if row.counted.n:
            assert shown["comparisons"].startswith(f"{shown['count']} (") and shown["gauge fixed"]
        named = {name for name in OPTIMIZERS if re.search(rf"\b{name}\b", row.statement.says)}
        found = {*shown["optimizers"].split()}
        assert found == named if named else {*row.optimizers.split()} & {*OPTIMIZERS} <= found
        if "at the paper's width" in row.claim:
            assert found == {"Adam", "AdamW"}
    links = re.findall(
        r'<h4><a href="([\w]+)\.html#([a-z]+)-(\d+)">(\w+) (\d+)', page.replace("Figures", "Figure")
    )
    assert len(links) == board.groupby(["item", "claim"]).ngroups
    assert all((kind, n) == (word.lower(), m) for _, kind, n, word, m in links)


def test_a_commit_that_looks_like_a_number_stays_as_it_is(tmp_path):
    file = shutil.copy(ROOT / "results" / "04_explore.parquet", tmp_path / "known.parquet")
    for name, commit in (
        ("one.parquet", "0123456"),
        ("two.parquet", "12e4567"),
        ("three.parquet", "1234567"),
    ):
        manifest.describe(Path(shutil.copy(file, tmp_path / name)), "sweep", commit)
    listed = pd.read_csv(tmp_path / "manifest.csv", index_col="file", dtype=str)["commit"]
    assert listed.to_dict() == {
        "one.parquet": "0123456",
        "two.parquet": "12e4567",
        "three.parquet": "1234567",
    }


def test_the_manifest_counts_what_the_files_hold():
    listed = pd.read_csv(ROOT / "results" / "manifest.csv", index_col="file")
    files = sorted((ROOT / "results").glob("*.parquet"))
    assert sorted(listed.index) == [f.name for f in files]
    for file in files:
        line = listed.loc[file.name]
        assert manifest.summary(file) == {
            name: line[name] for name in ("device", "wall_s", "runs", "dropped")
        }
        assert isinstance(line["command"], str) and len(str(line["commit"])) >= 7
    assert sum(f.stat().st_size for f in files) < 40e6


def test_every_changed_line_that_no_test_noticed_has_a_reason():
    counts = pd.read_csv(ROOT / "results" / "mutants.csv", index_col="module")
    lived = pd.read_csv(ROOT / "results" / "survivors.csv", keep_default_na=False)
    assert (lived[["was", "became", "reason"]].map(len) > 0).all(axis=None)
    assert (counts["tried"] - counts["noticed"]).to_dict() == lived["module"].value_counts().to_dict()
    assert (counts["noticed"] >= 0.9 * counts["tried"]).all() and (counts["tried"] <= counts["mutants"]).all()
    for module, of_module in lived.groupby("module"):
        lines = " ".join((ROOT / module).read_text("utf-8").split())
        assert all(" ".join(was.split()) in lines for was in of_module["was"])


def test_what_mutants_left_is_counted_by_modules_tried_whole_or_in_the_order_drawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import mutants

    def codes(module, **of_mutant):
        meta = tmp_path / "mutants" / "ncutils" / f"{module}.py.meta"
        meta.parent.mkdir(parents=True, exist_ok=True)
        meta.write_text(json.dumps({"exit_code_by_key": of_mutant}))

    monkeypatch.setattr(mutants, "change", lambda mutant, _: (f"was {mutant}", "became"))
    codes("whole", a=1, b=0, c=-24, d=33)  # d: no test came by
    codes("part", e=1, f=None)
    names = random.Random(0).sample([f"m{i:03}" for i in range(200)], 200)
    codes("drawn", **{name: None if i == 150 else int(i != 20) for i, name in enumerate(names)})
    # of the first 100 one is missing
    codes("picked", **{name: None if i == 90 else 1 for i, name in enumerate(names)})
    (tmp_path / "mutants.csv").write_text(
        "module,mutants,tried,noticed\nncutils/old.py,9,9,8\nncutils/whole.py,7,7,1\n"
    )
    (tmp_path / "survivors.csv").write_text(
        "module,was,became,reason\nncutils/old.py,x,y,z\nncutils/whole.py,was b,became,seen\n"
    )
    mutants.main(tmp_path, tmp_path)
    assert pd.read_csv(tmp_path / "mutants.csv").to_numpy().tolist() == [
        ["ncutils/drawn.py", 200, 150, 149],
        ["ncutils/old.py", 9, 9, 8],
        ["ncutils/whole.py", 4, 4, 2],
    ]
    assert pd.read_csv(tmp_path / "survivors.csv", keep_default_na=False).to_numpy().tolist() == [
        ["ncutils/drawn.py", f"was {names[20]}", "became", ""],
        ["ncutils/old.py", "x", "y", "z"],
        ["ncutils/whole.py", "was b", "became", "seen"],
        ["ncutils/whole.py", "was d", "became", ""],
    ]


def test_a_page_without_marks_is_refused(tmp_path):
    (tmp_path / "chapters").mkdir()
    for name in PAGES:
        (tmp_path / name).write_text("# Nothing\n")
    with pytest.raises(ValueError, match="has no place for the scoreboard"):
        scoreboard.write(tmp_path)


def test_published_tables_are_whole():
    assert set(published.TABLE1) == set(published.TABLE4) == set(OPTIMIZERS)
    assert published.TABLE5.notna().all(axis=None)
    for row in published.TABLE5.itertuples():  # F = t^2, the interval about the slope
        assert row.f == pytest.approx(row.t**2, rel=1e-3) and row.ci_low < row.beta < row.ci_high
        assert row.r2_adj == pytest.approx(1 - (1 - row.r2) * (row.n - 1) / (row.n - 2), abs=3e-3)


def test_what_more_epochs_did_is_a_factor_of_each_pair():
    shorter = [history("AdamW", wd, nc0, epochs=20) for wd, nc0 in ((0.1, 2.0), (1, 4.0), (5, 1.0))]
    longer = [history("AdamW", wd, nc0, epochs=200) for wd, nc0 in ((0.1, 1.0), (1, 12.0))]
    longer += [history("AdamW", 5, 1.0, epochs=200, train_acc=0.5), history("AdamW", 9, 1.0, epochs=200)]
    after, before = analysis.table({"AdamW": longer}), analysis.table({"AdamW": shorter})
    factors = claims.of_more_epochs(after, before, 20)
    assert dict(zip(factors["wd"], factors["nc0"])) == {
        0.1: 0.5,
        1: 3.0,
    }  # the others have no valid counterpart


def test_a_judge_of_a_chapters_own_runs_says_why_it_cannot_judge():
    failed = analysis.table({"AdamW": [history("AdamW", 1, 1.0, train_acc=0.5)]})
    for judge in (claims.ufm, claims.vit):
        seen = claims.look(judge, failed)
        assert not seen.statements and seen.text


def test_figure_15_takes_its_medians_of_runs_that_fit_and_decay():
    runs = {"Adam": [(0.01, 2.0), (0.02, 4.0), (0.03, 6.0)], "SGD": [(0.01, 1.0)], "SGDW": [(0.1, 500.0)]}
    runs["AdamW"] = [(0.1, 40.0), (0.2, 400.0), (0.3, 4000.0)]
    # past 1 / sqrt(K N) = 0.0316 zero is the only minimiser, for SGDW with momentum 0.9 past ten times as much
    for name, wd in (("Adam", 0.032), ("SGD", 0.032), ("SGDW", 0.32)):
        runs[name].append((wd, 1e-9))
    groups = {name: [history(name, wd, nc0, nc3=nc0) for wd, nc0 in pairs] for name, pairs in runs.items()}
    groups["AdamW"] += [history("AdamW", 5, 1e-9, train_acc=0.999), history("AdamW", 0, 1e-9)]
    seen = claims.ufm(analysis.table(groups))
    assert seen.text.startswith("median AdamW over Adam NC0 1e+02 ×, SGD NC0 4e+02 ×, SGDW NC0 0.8 ×")
    assert len(seen.runs) == 8 and not any("SGDW" in s.says for s in seen.statements)  # shown, not judged
    # 40 / 2, / 4, / 6, 400 / 2, ...: all but 40 / 4 = 10 and 40 / 6 are more than ten times
    assert [(s.counted().k, s.counted().n) for s in seen.statements] == [(7, 9), (7, 9), (3, 3), (3, 3)]


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_nc4_is_the_papers_where_it_is_known():
    of_test, nc3 = [0.98, 0.985, 0.991, 0.992, 0.993, 0.994, 0.999, 1.0], [7, 8, 5, 6, 4, 3, 2, 1]
    runs = [history("AdamW", 0.1 * wd, 1.0, nc3=x) for wd, x in enumerate(nc3, 1)]
    table = analysis.table({"AdamW": runs}).assign(nc4_test=of_test)
    seen = claims.nc4(table)
    rank = stats.spearmanr(of_test, nc3).statistic
    assert rank < -0.6  # so that NC3 follows NC4
    assert seen.text.startswith(
        "NC4 of the test images above 0.9 in 100 %, 0.95 in 100 %, 0.99 in 75 % of 8 valid runs"
    )
    assert seen.text.endswith(f"{rank:.2f}")
    counted = {s.says: (s.counted().k, s.counted().n) for s in seen.statements}
    assert counted["NC4 of the test images is above 0.99 in a valid run"] == (6, 8)
    assert counted["NC4 of the training images is above 0.99 in a valid run"] == (8, 8)
    assert counted[f"NC4 does not follow NC3 (rank correlation under {verdicts.UNRELATED})"] == (0, 1)
    # a run that was stored without it is left out
    table.loc[3, "nc4_test"] = np.nan
    seen = claims.nc4(table)
    assert seen.text.startswith(
        "NC4 of the test images above 0.9 in 100 %, 0.95 in 100 %, 0.99 in 71 % of 7 valid"
    )
    assert [(s.counted().k, s.counted().n) for s in seen.statements] == [(5, 7), (7, 7), *[(0, 0)] * 3]
    # that of the training images, 1 in all of these, where none has it
    seen = claims.nc4(table.drop(columns="nc4_test"))
    assert seen.text.startswith(
        "NC4 of the training images above 0.9 in 100 %, 0.95 in 100 %, 0.99 in 100 % of 8 "
    )
    assert [(s.counted().k, s.counted().n) for s in seen.statements] == [(8, 8), *[(0, 0)] * 3]


def test_a_row_judges_the_same_comparisons_once(board):
    """Where the best decays are the only ones that have acted, they are no second statement; six settings together have it."""
    for _, rows in board.groupby(["item", "claim"]):
        pairs = [
            frozenset(s.found[["one", "other", "value"]].itertuples(index=False, name=None))
            for s in rows["statement"]
            if s.ratios and len(s.found)
        ]
        assert len({*pairs}) == len(pairs)
    says = {(r.item, r.statement.says) for r in board.itertuples()}
    at_best = f"AdamW above Adam in NC3, {claims.AT_BEST}"
    assert ("Figure 24", at_best) not in says and ("Figure 29", at_best) not in says
    (together,) = (r for r in board.itertuples() if r.statement.says == at_best and "together" in r.claim)
    assert together.counted.n > together.counted.networks.n == 6


def test_the_verdict_says_what_weighs_in_its_counts(board):
    """The overlap of best decays with those that have acted, and the shares with each network and data set weighted alike."""
    text = (ROOT / "chapters/verdict.md").read_text("utf-8")
    rows = {r.statement.says: r.statement for r in board.itertuples() if "together" in r.claim}
    known = {}
    for decoupled, coupled in (("SignumW", "Signum"), ("AdamW", "Adam")):
        acted, best = (
            {*zip(of["one"], of["other"])}
            for words in (claims.ACTED.format(decoupled), claims.AT_BEST)
            for of in [rows[f"{decoupled} above {coupled} in NC3, {words}"].found]
        )
        known[decoupled] = f"{len(best & acted)} of {len(best)} pairs of {decoupled}"
    assert f"{' and '.join(known.values())} are among those whose decay has acted" in text
    found = rows["NC3 is larger where NC0 is, over all learning rates"].found
    of = [dict(like)["arch"] + dict(like)["dataset"] for like in found["like"]]
    largest = max(of.count(name) for name in {*of}) / len(of)
    shares = [found[c].gt(0).groupby(of).mean().mean() for c in ("value", "fixed")]
    assert (
        f"{100 * largest:.0f} % of the pairs are of one network and data set; with the 6 networks and data sets weighted alike the "
        f"shares are {100 * shares[0]:.1f} and, with the gauge fixed, {100 * shares[1]:.1f} %" in text
    )
