"""Chapter 24: what it computes about Table 1 and the released code, computed here in another way, and its tables' form."""

import inspect
import itertools
import re
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from ncutils.book.published import TABLE1, TABLE1_CHANGE
from ncutils.runs import Run
from tests.test_chapters import papermill, text_of

CHAPTER = Path(__file__).resolve().parents[1] / "chapters" / "24_paper_and_code.ipynb"
HEADER = ["item", "the text", "as released", "here", "does it matter?"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """What the chapter's cells say in its default profile, tables without their HTML."""
    out = tmp_path_factory.mktemp("chapter") / "out.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCUTILS_RUNS", str(out.parent / "runs"))
        done = papermill(CHAPTER, out)
    assert done.returncode == 0, done.stderr[-1000:]
    found = re.sub(r"<style.*?</style>|<[^>]+>", " ", text_of(out), flags=re.DOTALL)
    return re.sub(r"\s+", " ", found)


def allowed(column: str, starts: np.ndarray, exact: dict[str, float]) -> np.ndarray:
    """Those initial values from which each optimizer's end can be rounded to Table 1's two numbers.

    An end is tried at a hundred thousandths from each other. `exact` has the changes that are known beyond rounding.
    """
    for name, change in TABLE1_CHANGE.items():
        if change[column] is None:
            continue
        ends = TABLE1[name][column] + np.arange(-500, 501) / 1e5
        percent = 100 * (ends / starts[:, None] - 1)
        if name in exact:
            at = starts * (1 + exact[name] / 100)
            starts = starts[np.abs(at - TABLE1[name][column]) <= 0.005]
        else:
            starts = starts[(np.abs(percent - change[column]) <= 0.05 + 1e-9).any(1)]
    return starts


def sgdw_change() -> float:
    """Percent by which 200 epochs of 469 steps at 0.0679, 0.00679 and 0.000679 decay W under wd 5e-4."""
    kept = 1.0
    for epochs, lr in ((66, 0.0679), (67, 0.00679), (67, 0.000679)):
        kept *= (1 - lr * 5e-4) ** (469 * epochs)
    return 100 * (kept - 1)


@pytest.mark.parametrize(
    ("column", "between"), [("nc0", (1.6, 2)), ("nc1", (6.5, 7.5)), ("nc2", (0.7, 0.9)), ("nc3", (1.3, 1.5))]
)
def test_the_starts_that_table_1_allows(column, between, text):
    exact = {"SGDW": sgdw_change()} if column == "nc0" else {}
    starts = allowed(column, np.arange(*between, 1e-4), exact)
    shown = re.search(rf"{column.upper()} ([\d.]+) \w+ ([\d.]+) \w+", text)
    assert [float(number) for number in shown.groups()] == pytest.approx([starts[0], starts[-1]], abs=2e-4)


def test_the_seed_that_fits(text):
    assert "lie between 1.7529 and 1.7581: 3141 with 1.7538." in text
    assert "seed 3141 starts at 1.7764, outside" in text


def test_how_rare_a_fit_is(text):
    """The squared sum of 512 columns is close to normal: mean 10/3; here its share between the bounds, drawn once more."""
    torch.manual_seed(1)
    starts = [torch.nn.Linear(512, 10).weight.detach().sum(0).norm() for _ in range(4000)]
    share = np.mean([1.7529 <= start <= 1.7581 for start in starts])
    shown = float(re.search(r"drawn at random ([\d.]+)% lie inside", text).group(1)) / 100
    assert shown == pytest.approx(share, abs=4 * np.sqrt(0.018 / 4000))


def test_an_adamw_that_is_not_told_decays_by_a_hundredth(text):
    assert inspect.signature(torch.optim.AdamW).parameters["weight_decay"].default == 0.01
    weight = torch.nn.Parameter(torch.full((3,), 2.0))
    weight.grad = torch.zeros(3)
    torch.optim.AdamW([weight], lr=0.1).step()
    assert torch.allclose(weight, torch.tensor(2 * (1 - 0.1 * 0.01)))
    assert "Torch's default is 0.01, and the step took 0.0100 times" in text


def test_sample_and_population_deviation(text):
    norms = [float(k) for k in range(1, 11)]
    factor = statistics.stdev(norms) / statistics.pstdev(norms)
    assert f"{factor:.4f}" == "1.0541" and "as released are 1.0541 times those here" in text


def rows() -> list[list[str]]:
    """The rows of the chapter's tables of differences, with their headers."""
    prose = [c.source for c in nbformat.read(CHAPTER, as_version=4).cells if c.cell_type == "markdown"]
    lines = itertools.chain.from_iterable(source.splitlines() for source in prose)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_every_row_has_all_five_cells():
    found = rows()
    assert found.count(HEADER) == 4 and len(found) > 4 * 2 + 25
    assert all(len(row) == 5 and all(row) for row in found)


def test_what_switches_a_row_is_a_field_of_run():
    """Names under "here", and the values that the prose gives them; a value that is none Run refuses."""
    named = re.findall(r"`(\w+)`", " ".join(row[3] for row in rows()))
    assert {"net", "fit", "scale", "augment", "decay_on", "schedule"} <= set(named)
    assert set(named) - set(Run.model_fields) == {"nc4_test"}
    prose = " ".join(
        c.source for c in nbformat.read(CHAPTER, as_version=4).cells if c.cell_type == "markdown"
    )
    given = re.findall(r'`(\w+)="([\w-]+)"`', prose)
    assert {"net", "fit", "scale", "augment"} <= {name for name, _ in given}
    for name, value in given:
        assert getattr(Run(**{"dataset": "FashionMNIST"} | {name: value}), name) == value


def test_numbers_of_the_released_vit(text):
    """Counted by hand: width 512, six blocks with MLPs as wide as the tokens, 65 positions, no last LayerNorm."""
    block = 3 * 512**2 + (512**2 + 512) + 2 * (512**2 + 512) + 2 * 1024
    size = (3 * 16 + 1) * 512 + 512 + 65 * 512 + 6 * block + (512 + 1) * 10
    assert f"released {size:,} 1.4" in text


@pytest.mark.counts("bad inputs refused")
def test_too_few_images_are_refused(tmp_path):
    done = papermill(CHAPTER, tmp_path / "out.ipynb", n_images=100)
    assert done.returncode != 0
    assert "n_images = 100 is not allowed: use 30000 to 60000, or 0 for none" in done.stderr
