"""Chapter 24: what it computes about Table 1 and the released code, computed here in another way, and its tables' form."""

import collections
import inspect
import itertools
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from scipy import stats

from ncutils import data, machine, metrics, step
from ncutils.book import pages
from ncutils.book.published import TABLE1, TABLE1_CHANGE
from ncutils.runs import Run
from ncutils.store import Store, read_grid
from tests.test_chapters import papermill, text_of

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "chapters" / "24_paper_and_code.ipynb"
HEADER = ["item", "the text", "as released", "here", "does it matter?"]


@pytest.fixture(scope="module")
def text(quick_book):
    """What the chapter's cells say in the quick profile, tables without their HTML."""
    executed = text_of(quick_book / "chapters" / CHAPTER.name)
    found = re.sub(r"<style.*?</style>|<[^>]+>", " ", executed, flags=re.DOTALL)
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


def cell_of(words: str) -> str:
    """The chapter's cell of code with these words."""
    (source,) = (c.source for c in nbformat.read(CHAPTER, as_version=4).cells if words in c.source)
    return source


@pytest.mark.parametrize("training", [True, False])
def test_what_is_measured_before_training(training):
    """The chapter's own function on random images, with the network, its BatchNorms and the metrics written out here."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 1, 32, 32, generator=rng), torch.arange(200) % 10
    fashion = data.Dataset(x, y, x[:2], y[:2], 10)
    there = {"torch": torch, "data": data, "Run": Run, "step": step, "machine": machine, "metrics": metrics}
    there |= {
        "pages": pages,
        "fashion": fashion,
        "device": "cpu",
        "low": 0,
        "high": 0,
        "nothing": lambda channels: fashion,
    }
    exec(cell_of("def untrained("), there)
    exec(cell_of("def before_training("), there)
    found = there["before_training"](3141, 160, training)

    torch.manual_seed(3141)
    model = there["untrained"](3141, fashion)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    shuffled = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    parts = []
    for part in (shuffled[:128], shuffled[128:]):
        for norm in norms:  # fresh statistics: mean 0 and variance 1 are no normalisation at all
            norm.train(training).register_forward_pre_hook(lambda m, given: m.reset_running_stats())
        with torch.no_grad():
            parts.append(model.features(x[part]))
    h, labels = torch.cat(parts).double().numpy(), y[shuffled].numpy()
    w = model.classifier.weight.detach().double().numpy()
    means = np.stack([h[labels == k].mean(0) for k in range(10)])
    m, within = (means - means.mean(0)).T, h - means[labels]
    etf = (np.eye(10) - 0.1) / 3
    gram = m.T @ m
    inverse = np.linalg.pinv(m @ m.T / 10, rcond=1e-10, hermitian=True)
    expected = {
        "NC0": np.linalg.norm(w.sum(0)),
        "NC1": np.trace(within.T @ within / 160 @ inverse) / 10,
        "NC2": np.linalg.norm(gram / np.linalg.norm(gram) - etf),
        "NC3": np.linalg.norm(w / np.linalg.norm(w) - m.T / np.linalg.norm(m)),
    }
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n_images", "modes"), [(256, 3), (60_000, 3)])
def test_how_many_images_are_measured_in_which_mode(n_images, modes):
    """On few images half of them show how far the metrics have come; the ten seeds are compared where there are enough."""
    asked = []

    def before_training(seed, n, training):
        asked.append((seed, n, training))
        return {"NC0": 1.7538}

    there = {"enough": n_images >= 30_000, "before_training": before_training, "seed": 3141}
    there |= {"SEEDS": [3141, 1998], "fashion": SimpleNamespace(train_labels=[0] * n_images)}
    exec(cell_of("modes, of_seeds = {}, {}"), there)
    of_modes = [(3141, n_images, True), (3141, n_images // (30 if n_images > 256 else 2), True)]
    of_modes.append((3141, 2000 if n_images > 256 else 256, False))
    of_seeds = [(3141, 2000, True), (1998, 2000, True)] if n_images > 256 else []
    assert asked == of_seeds + of_modes and len(there["modes"]) == modes


def test_few_images_are_not_said_to_be_inside(text, real_data):
    assert "on 256 of the 60,000 images" in text and "They do not say whether a value lies inside" in text
    assert "seeds once more" not in text


def test_a_few_images_are_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path / "nothing"))
    done = papermill(CHAPTER, tmp_path / "out.ipynb", n_images=256)
    assert done.returncode == 0, done.stderr[-1000:]
    assert "Not measured: FashionMNIST is not in the folder of data" in text_of(tmp_path / "out.ipynb")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.counts("bad inputs refused")
def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="^n_images = 100 is not allowed: use 256 to 60000, or 0 for none"):
        exec(cell_of("n_images < 256"), {"n_images": 100})


def test_the_choices_lie_outside_the_spread_as_often_as_the_page_says(text):
    """Cohen's d from the stored runs by plain arithmetic, the choice read off the field in which a run is not as the book's."""
    said = {"fit": "Resized", "scale": "Published normalisation", "crop-flip": "Augmented"}
    said |= {
        "crop-flip-measured": "Augmented, measured so",
        "net": "Biases, order of layers",
        "wd": "AdamW's decay 0.01",
    }
    store, finals = Store(shipped=ROOT / "results"), {}
    for name, run in read_grid(ROOT / "params/laptop/ablation.yaml"):
        made = (
            [run.augment]
            if run.augment != "none"
            else [f for f in ("fit", "scale", "net") if getattr(run, f) != Run.model_fields[f].default]
        )
        made += ["wd"] * (run.decoupled_wd == 0.01)
        assert len(made) < 2
        of = finals.setdefault((run.arch, run.dataset, name, *made), [])
        of += [h.final] if (h := store.get(run)) else []
    assert sum(map(len, finals.values())) > 70
    outside, compared = collections.Counter(), collections.Counter()
    for (arch, *setting, made), having in ((k, v) for k, v in finals.items() if len(k) == 4):
        none = finals[(arch, *setting)]
        for metric in ("nc0", "nc1", "nc2", "nc3"):
            one, other = ([math.log(final[metric]) for final in of] for of in (having, none))
            if len(one) == len(other) == 3:
                pooled = math.sqrt((statistics.variance(one) + statistics.variance(other)) / 2)
                d = (statistics.mean(one) - statistics.mean(other)) / pooled
                place = ("Released ViT" if arch == "vit" else said[made], metric.upper())
                compared[place] += 1
                outside[place] += abs(d) > stats.t.ppf(0.975, 4) * math.sqrt(2 / 3)
    assert len(compared) >= 4 * 4
    for name in {name for name, _ in compared}:
        counts = ", ".join(
            f"{m} in {outside[name, m]} of {compared[name, m]}" for m in ("NC0", "NC1", "NC2", "NC3")
        )
        assert f"**{name}**, outside the spread: {counts}." in text
    assert f"Of all {compared.total()} comparisons {outside.total()} lie outside" in text
