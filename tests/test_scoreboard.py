"""The scoreboard and the manifest say what the shipped results say, and nothing is typed by hand."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ncutils import analysis
from ncutils.__main__ import main
from ncutils.book import claims, manifest, published, scoreboard
from ncutils.book.claims import Seen
from ncutils.optimizers import OPTIMIZERS
from tests.test_analysis import history

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "chapters/intro.md")


@pytest.fixture
def shipped(monkeypatch):
    """The results that ship; no local run."""
    monkeypatch.setattr("ncutils.store.project_folder", lambda name: ROOT / name)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    (folder / "chapters").mkdir()
    for name in PAGES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_pages_hold_what_the_results_give(shipped, pages, monkeypatch):
    monkeypatch.setattr("ncutils.__main__.project_folder", lambda name: pages / name)
    assert main(["scoreboard"]) == 0
    for name in PAGES:
        assert (pages / name).read_bytes() == (ROOT / name).read_bytes(), (
            f"run `python -m ncutils scoreboard`: {name}"
        )


def test_every_figure_and_table_has_a_line_and_a_page():
    figures, tables = ([f"{kind} {i}" for i in range(1, n + 1)] for kind, n in (("Figure", 45), ("Table", 5)))
    assert claims.CLAIMS["item"].tolist() == figures + tables
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert {f"chapters/{page}" for page in claims.CLAIMS["page"]} <= pages


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [([1.0, 0.9], "agree"), ([1.0, 0.89], "partly"), ([0.49, 0.0], "disagree"), ([0.5, 0.0], "partly")],
)
def test_verdicts(shares, verdict):
    assert Seen("", shares, ["a run"]).verdict == verdict
    assert Seen("", shares, []).verdict == "not run"


def test_a_store_without_runs_has_only_lines_that_were_not_run():
    board = scoreboard.board()
    assert len(board) == len(claims.CLAIMS) and set(board["verdict"]) == {"not run"}
    assert set(board["sees"]) == {"no run of this setting is stored"} and set(board["scale"]) == {""}


def test_a_judge_that_fails_is_no_claim_that_was_not_run(monkeypatch):
    def looks(judge):
        monkeypatch.setattr(scoreboard, "CLAIMS", claims.CLAIMS.head(1).assign(look=[judge]))
        return scoreboard.board()

    def not_run(stored):
        raise claims.NotRun("this one needs a telescope")

    found = looks(not_run).iloc[0]
    assert (found["verdict"], found["sees"]) == ("not run", "this one needs a telescope")
    with pytest.raises(KeyError, match="no such column"):
        looks(lambda stored: stored["no such column"])
    with pytest.raises(IndexError):
        looks(lambda stored: stored.iloc[0])


def test_the_papers_order_in_the_shipped_runs(shipped):
    """The signs that the book rests on, from the stored runs: not eyeballed."""
    board = scoreboard.board().set_index("item")
    expected = dict.fromkeys(
        ("Figure 1", "Figure 5", "Figure 6", "Figure 15", "Figure 20", "Figure 40"), "agree"
    )
    # SGDW is far from SGD at one decay; SignGDW has not settled; SGD's best run has the smallest NC2
    expected |= dict.fromkeys(("Figure 3", "Figure 8", "Table 2"), "partly")
    for item, verdict in expected.items():
        assert board.loc[item, "verdict"] == verdict, board.loc[item, "sees"]
    look, stored = claims.CLAIMS.set_index("item")["look"], claims.stored_runs()
    # what else these lines say holds
    assert min(look["Figure 3"](stored).shares[:3]) >= 0.9 and min(look["Figure 8"](stored).shares[:2]) == 1


def test_the_manifest_counts_what_the_files_hold():
    listed = pd.read_csv(ROOT / "results" / "manifest.csv", index_col="file")
    files = sorted((ROOT / "results").glob("*.parquet"))
    assert sorted(listed.index) == [f.name for f in files]
    for file in files:
        line = listed.loc[file.name]
        assert manifest.summary(file) == {
            name: line[name] for name in ("device", "wall_s", "runs", "dropped")
        }
        assert line["command"] and len(str(line["commit"])) >= 7
    assert sum(f.stat().st_size for f in files) < 40e6


def test_a_page_without_marks_is_refused(tmp_path):
    (tmp_path / "chapters").mkdir()
    for name in PAGES:
        (tmp_path / name).write_text("# Nothing\n")
    with pytest.raises(ValueError, match="has no place for the scoreboard"):
        scoreboard.write(tmp_path)


def test_published_tables_are_whole():
    assert set(published.TABLE1) == set(published.TABLE4) == set(OPTIMIZERS)
    assert all(len(row) == len(published.TABLE5_COLUMNS) for row in published.TABLE5.values())
    for row in published.TABLE5.values():  # F = t^2, the interval about the slope
        n, beta, _, t, _, low, high, r2, r2_adj, f = row
        assert f == pytest.approx(t**2, rel=1e-3) and low < beta < high
        assert r2_adj == pytest.approx(1 - (1 - r2) * (n - 1) / (n - 2), abs=3e-3)


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
        assert seen.verdict == "not run" and seen.text


def test_figure_15_takes_its_medians_of_runs_that_fit_and_decay():
    runs = {"Adam": [(0.1, 2.0), (0.2, 4.0), (0.3, 6.0)], "SGD": [(0.1, 1.0)], "SGDW": [(0.1, 500.0)]}
    runs["AdamW"] = [(0.1, 40.0), (0.2, 400.0), (0.3, 4000.0)]
    groups = {name: [history(name, wd, nc0, nc3=nc0) for wd, nc0 in pairs] for name, pairs in runs.items()}
    groups["AdamW"] += [history("AdamW", 5, 1e-9, train_acc=0.999), history("AdamW", 0, 1e-9)]
    seen = claims.ufm(analysis.table(groups))
    assert seen.text.startswith("median AdamW over Adam NC0 1e+02 ×, SGD NC0 4e+02 ×, SGDW NC0 0.8 ×")
    assert seen.shares == [1.0] and len(seen.runs) == 8  # SGDW is shown, not judged
