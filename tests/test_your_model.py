"""Chapter 18: the callbacks that it shows, run where Lightning and transformers are installed; its table beside the library
neural-collapse, against that library's code where NCUTILS_PEER names a checkout."""

import importlib
import inspect
import re
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ncutils import Measurement, Tracker, measure, measuring, metrics, nc_metrics
from tests.test_chapters import outputs, text_of

CHAPTER = Path(__file__).resolve().parents[1] / "chapters" / "18_your_model.ipynb"
CELLS = nbformat.read(CHAPTER, as_version=4).cells
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
SHOWN = re.findall(r"```python\n(.*?)```", PROSE, flags=re.DOTALL)
EPOCHS = 3


def shown(package: str) -> str:
    """The chapter's lines for a package."""
    return next(lines for lines in SHOWN if f"import {package}\n" in lines)


def of_the_tracker(lines: str) -> list[str]:
    """From `tracker =` to where the trainer is told of it."""
    lines = [line for line in lines.splitlines() if line.strip()]
    start = next(i for i, line in enumerate(lines) if line.startswith("tracker = "))
    return lines[start : next(i for i, line in enumerate(lines) if "Collapse()" in line) + 1]


def data(n=200, size=16):
    torch.manual_seed(0)
    labels = torch.arange(n) % 4
    return torch.randn(4, size)[labels] + torch.randn(n, size), labels


def assert_measured(tracker, features, labels, head):
    """At each epoch; the last measurement is that of the trained network, by hand."""
    assert tracker.at == [1, 2, 3]
    with torch.no_grad():
        expected = nc_metrics(features, labels, head.weight, head.bias)
    last = tracker.measurements[-1]
    assert {name: last[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert last["nc1"] < tracker.measurements[0]["nc1"]


def test_as_many_lines_as_the_chapter_says():
    assert [len(of_the_tracker(lines)) for lines in SHOWN] == [5, 5]
    training = next(c.source for c in CELLS if "tracker = Tracker" in c.source and c.cell_type == "code")
    assert len(training.splitlines()) == 10
    of_tracker = [line for line in training.splitlines() if "tracker" in line and "plot" not in line]
    assert len(of_tracker) == 3


def test_the_pictures_are_shown_once(quick_book):
    executed = quick_book / "chapters" / CHAPTER.name
    found = outputs(executed)
    assert sum("image/svg+xml" in o.get("data", {}) for o in found) == 2
    columns = re.findall(r"<th>(training|test|other data)</th>", text_of(executed))
    assert columns == ["training", "test", "other data"]


def test_lightning(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning", reason="needs the package lightning")
    monkeypatch.chdir(tmp_path)
    images, labels = data()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2))
            self.head = nn.Linear(32, 4)

        def forward(self, images):
            return self.head(self.net(images))

        def training_step(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def train(lines):
        lightning.seed_everything(1, verbose=False)
        loader = DataLoader(TensorDataset(images, labels), 32, shuffle=True)
        names = {"module": Module(), "loader": loader, "Tracker": Tracker, "epochs": EPOCHS}
        exec(lines, names)
        return names

    lines = shown("lightning")
    watched, alone = train(lines), train(lines.replace("callbacks=[Collapse()]", "callbacks=[]"))
    module = watched["module"].eval()
    assert_measured(watched["tracker"], module.net(images).detach(), labels, module.head)
    assert watched["tracker"].measurements[0].head == "head"
    of_other = alone["module"].state_dict()
    assert all(torch.equal(value, of_other[name]) for name, value in module.state_dict().items())
    assert alone["tracker"].at == []


def test_hugging_face_trainer(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    pytest.importorskip("accelerate", reason="needs the package accelerate, as transformers.Trainer does")
    monkeypatch.chdir(tmp_path)
    images, labels = data(size=64)
    images = images.reshape(-1, 1, 8, 8)
    dataset = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels)]
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 4}

    def train(lines):
        transformers.set_seed(1)
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**small, **shape))
        arguments = transformers.TrainingArguments(
            str(tmp_path), num_train_epochs=EPOCHS, learning_rate=0.01, report_to=[], use_cpu=True
        )
        loader = DataLoader(dataset, 32, shuffle=True)
        trainer = transformers.Trainer(model, arguments, train_dataset=dataset)
        names = {"model": model, "loader": loader, "trainer": trainer, "Tracker": Tracker}
        exec(lines, names)
        return names

    lines = shown("transformers")
    watched, alone = train(lines), train(lines.replace("trainer.add_callback(Collapse())", ""))
    model = watched["model"].eval()
    with torch.no_grad():
        features = model.vit(images).last_hidden_state[:, 0]
    assert_measured(watched["tracker"], features, labels, model.classifier)
    assert watched["tracker"].measurements[0].head == "classifier" and alone["tracker"].at == []
    of_other = alone["model"].state_dict()
    assert all(torch.equal(value, of_other[name]) for name, value in model.state_dict().items())


def rows() -> dict[str, tuple[str, str]]:
    """Item -> what stands for the other library and for this one."""
    table = PROSE[PROSE.index("| | `neural-collapse`") :]
    lines = [line.strip().strip("|").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {line[0].strip(): (line[1].strip(), line[2].strip()) for line in lines[1:]}


def quoted(column: int) -> set[str]:
    return {name for cells in rows().values() for name in re.findall(r"`([^`]+)`", cells[column])}


def test_what_the_table_says_of_this_library_is_there():
    torch.manual_seed(0)
    inputs = [(torch.randn(40, 8), torch.arange(40) % 4)]
    found = measure(nn.Linear(8, 4), inputs, test=inputs, ood=inputs)
    arguments = {f"{name}=" for name in inspect.signature(measure).parameters}
    modules = {name for m in (measuring, metrics) for name in vars(m)}
    known = set(found) | set(dir(found)) | arguments | modules
    assert quoted(1) <= known, quoted(1) - known
    assert isinstance(found, Measurement) and found["nc0"] > 0
    with pytest.raises(ValueError, match="class 3 of 4 has no sample"):
        measure(nn.Linear(8, 4), [(inputs[0][0], inputs[0][1].clamp(max=2))])
    mu = metrics.class_means(torch.randn(9, 3), torch.tensor([0] * 7 + [1, 1]), 2)
    assert mu.dtype == torch.float64
    dashes = [item for item, (_, here) in rows().items() if here.startswith("–")]
    assert not dashes


@pytest.fixture
def modules(peer):
    folder = Path(peer[0].__file__).parent
    return {
        path.stem: importlib.import_module(f"neural_collapse.{path.stem}") for path in folder.glob("*.py")
    }


def test_what_the_table_says_of_the_other_library_is_there(modules):
    """All its functions and classes are in the table; what has a dash there is nowhere in its code."""
    public, parts = set(), set()
    for name in ("accumulate", "kernels", "measure"):
        for what, value in vars(modules[name]).items():
            if getattr(value, "__module__", "") == f"neural_collapse.{name}":
                public.add(what)
                methods = [m for _, m in inspect.getmembers(value, inspect.isfunction)] or [value]
                parts |= {m.__name__ for m in methods}
                parts |= {argument for m in methods for argument in inspect.signature(m).parameters}
    named, public = quoted(0), public - {"Accumulator"}  # which the others inherit from
    assert public <= named, public - named
    assert named <= public | parts, named - public - parts
    code = "\n".join(inspect.getsource(module) for module in modules.values()).lower()
    for absent in ("nc0", "accuracy", "gauge", "matplotlib", "hook", "bias: tensor"):
        assert absent not in code, absent
    assert "w.sum" not in code and "import faiss" in code.replace(
        "from faiss import indexflatl2", "import faiss"
    )


def test_what_the_table_says_of_the_other_librarys_arrays(modules):
    accumulate, kernels = modules["accumulate"], modules["kernels"]
    h, y = torch.randn(60, 7), torch.arange(60) % 3  # of the 4 classes one has no sample
    of_means = accumulate.MeanAccumulator(4, 7)
    of_means.accumulate(h, y)
    means, centre = of_means.compute()
    assert means.dtype == torch.float32 and (means[3] == 0).all()
    assert accumulate.MeanAccumulator(4, 7, dtype=torch.float64).totals.dtype == torch.float64
    assert torch.allclose(centre, means.mean(0))
    decisions = accumulate.DecAccumulator(4, 7)
    decisions.ns_samples, decisions.totals = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 1, 1, 1])
    of_classes, of_samples = (float(decisions.compute(weighted=w)[1]) for w in (False, True))
    assert of_classes == pytest.approx(25 / 48) and of_samples == pytest.approx(0.4)
    assert of_means.compute([0, 2])[0].shape == (2, 7)
    assert of_means.filter_indices_by_n_samples(1).tolist() == [0, 1, 2]
    assert accumulate.CovarAccumulator(4, 7).totals.shape == (7, 7)
    assert kernels.kernel_grid(means, centre, tile_size=2).shape == (4, 4)
    decide = inspect.signature(accumulate.DecAccumulator.accumulate).parameters
    assert list(decide) == ["self", "X", "Y", "W", "M"]  # no bias
