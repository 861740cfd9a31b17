"""Run (what is trained) -> History (what was measured)."""

from __future__ import annotations

import difflib
import functools
import hashlib
import io
import json
import math
import reprlib
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ncutils import data, machine, metrics, set_aside, theory, write_whole
from ncutils.models import ARCHITECTURES, NETS
from ncutils.optimizers import NAMES, RULES, make_optimizer

if TYPE_CHECKING:
    import pandas as pd

# Part of every Run's hash: raise it when a change of the code changes what a Run gives.
PROTOCOL = 1

CHECKPOINT_SECONDS = 300

# What the paper leaves open and no field of Run decides; stored with every History.
CHOICES = {
    "initialisation": "PyTorch's default",
    "input normalisation": "mean and standard deviation of each channel over the training images (scale = measured)",
    "metrics": "features of the whole training set in evaluation mode",
}


class _NotAllowed(ValueError):
    """About a field that is at odds with another one."""

    def __init__(self, name: str, value, why: str):
        super().__init__(f"{name} = {value!r} is not allowed: {why}")


def _known_rule(rule: str) -> str:
    """Looked up when a Run is made, so that a rule which a notebook adds to RULES is one, too."""
    if rule not in RULES:
        *others, last = map(repr, RULES)
        raise ValueError(f"it must be {', '.join(others)} or {last}")
    return rule


class Run(BaseModel):
    """Everything that decides a result. Unknown fields and values out of range are refused in one sentence.

    A Run's name is the hash of the fields that differ from their defaults, so a default must never change once runs
    are stored; a new field must default to what was done before it existed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arch: Literal[tuple(ARCHITECTURES)] = "resnet9"
    width: int = Field(8, ge=1, le=100_000, description="64 is the paper's; p = 8 width features")
    dataset: str = "digits"
    n_train: int | None = Field(None, ge=2, description="class-balanced subset; None: all")
    n_test: int | None = Field(None, ge=1, description="class-balanced subset; None: all")
    rule: Annotated[str, AfterValidator(_known_rule)] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="beta1 of Adam and Signum")
    coupled_wd: float = Field(0.0, ge=0, description="weight decay inside the gradient")
    decoupled_wd: float = Field(0.0, ge=0, description="weight decay on the weights")
    decay_on: Literal["all", "matrices"] = "all"
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's")
    eps: float = Field(1e-8, ge=0, description="Adam's")
    epochs: int = Field(200, ge=1, le=1_000_000)
    batch_size: int = Field(128, ge=1, le=2**31)
    schedule: Literal["step", "constant", "cosine"] = Field("step", description="see lr_schedule")
    seed: int = Field(0, ge=0, lt=2**32, description="initialisation and order of the samples")
    precision: Literal["float32", "bf16"] = Field("float32", description="of the convolutions alone")
    measure: Literal["log", "every", "ends"] = Field("log", description="which epochs are evaluated")
    image_size: int | None = Field(None, ge=4, description="pixels a side; a folder then stays on disk")
    net: Literal[tuple(NETS)] = Field("book", description="released: as the authors' code makes it, see models.RELEASED")
    fit: Literal["pad", "resize"] = Field("pad", description="how 28 x 28 images become 32 x 32")
    scale: Literal["measured", "published"] = Field("measured", description="of the images' normalisation, see data.PUBLISHED")

    @model_validator(mode="after")
    def _fields_fit(self) -> Run:
        if self.arch not in NETS[self.net]:
            raise _NotAllowed("net", self.net, f"there is none of arch {self.arch!r}, only of {', '.join(NETS[self.net])}")
        if self.scale == "published" and self.dataset not in data.PUBLISHED:
            known = ", ".join(data.PUBLISHED)
            raise _NotAllowed("scale", self.scale, f"none is known for dataset {shorten(self.dataset)}, only for {known}")
        return self

    def __init__(self, **fields):
        if switches := [name for name, value in fields.items() if isinstance(value, bool)]:
            raise ValueError(f"{switches[0]} = {fields[switches[0]]} is not allowed: no field is true or false")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(_one_sentence(error, type(self).model_fields)) from None

    @classmethod
    def named(cls, optimizer: str, wd: float, **fields) -> Run:
        """A Run by the paper's optimizer name (SGD, SGDW, Adam, AdamW, Signum, SignumW) and its one weight decay."""
        if not isinstance(optimizer, str) or optimizer not in NAMES:
            raise ValueError(f"optimizer = {shorten(optimizer)} is not allowed: use one of {', '.join(NAMES)}")
        rule, decay = NAMES[optimizer]
        try:
            return cls(rule=rule, **{decay: wd}, **fields)
        except ValueError as error:
            raise ValueError(str(error).replace(decay, "wd")) from None

    @classmethod
    def released(cls, optimizer: str, wd: float, *, dataset: str, **fields) -> Run:
        """`Run.named` with all that the authors' released code decides beside it: their network, images resized, their
        normalisation. The decay is the one asked for, where their AdamW always has 0.01."""
        return cls.named(optimizer, wd, dataset=dataset, **({"net": "released", "fit": "resize", "scale": "published"} | fields))

    @property  # not cached: model_copy(update=...) would keep the old one
    def hash(self) -> str:
        """The Run's name: 16 hexadecimal digits."""
        decided = self.model_dump(mode="json", exclude_defaults=True) | {"protocol": PROTOCOL}
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def wd(self) -> float:
        """The weight decay, wherever it acts; the sum where both are set."""
        return round(self.coupled_wd + self.decoupled_wd, 12)  # 0.1 + 0.2 is 0.3

    @property
    def optimizer(self) -> str:
        """The paper's name of rule and decay; the coupled one's at wd 0, "Adam+W" and the like where both are set."""
        coupled, decoupled = (name for name, (rule, _) in NAMES.items() if rule == self.rule)
        if self.coupled_wd and self.decoupled_wd:
            return f"{coupled}+W"
        return decoupled if self.decoupled_wd else coupled


@dataclass(frozen=True)
class History:
    """What one Run gave.

    `frame` has a row for each measured epoch, the first (step 0) for the untrained network: epoch, step, lr (of the
    epoch just ended), train_loss and test_loss (cross-entropy), train_acc and test_acc (shares), all keys of
    `metrics.nc_metrics` as reported, nc4_test (the same share of the test images, without bias), and the smallest and the mean other singular value of W and M (w_sv_min,
    w_sv_mean, m_sv_min, m_sv_mean), and for up to 32 classes `gram` (see `grams`). `info` says how it was made:
    device, threads, wall_s, measuring_s, versions, choices, and diverged_epoch (None, or the epoch in which the loss
    stopped being finite: the frame ends before it).
    """

    run: Run
    frame: pd.DataFrame
    info: dict = field(default_factory=dict)

    @functools.cached_property
    def final(self) -> dict[str, float]:
        """The last row's numbers, by column, without `gram`."""
        return _numbers(dict(self.frame.iloc[-1]))

    @property
    def grams(self) -> np.ndarray:
        """M^T M, W W^T and W M of each measured epoch [rows, 3, K, K], float32: the geometry NC2 and NC3 depend on."""
        k = self.info["n_classes"]
        return np.stack(self.frame["gram"].to_numpy()).reshape(-1, 3, k, k)

    @property
    def diverged(self) -> bool:
        return self.info.get("diverged_epoch") is not None

    @property
    def valid(self) -> bool:
        """The paper's filter: not diverged, at least 99 % training accuracy; 50 % for a transformer (its Figure 45)."""
        return not self.diverged and bool(self.final["train_acc"] >= self.least_accuracy)

    @property
    def least_accuracy(self) -> float:
        return 0.5 if self.run.arch == "vit" else 0.99


def _numbers(row: dict) -> dict:
    """A row's numbers, without `gram`, as Python's own."""
    return {name: v.item() if isinstance(v, np.generic) else v for name, v in row.items() if name != "gram"}


def lr_schedule(run: Run) -> np.ndarray:
    """Learning rate of each epoch [epochs].

    "step" divides by 10 after epochs // 3 and 2 epochs // 3 (66, 133 of 200). "cosine" rises linearly over the first 5 % of
    the epochs and falls along half a cosine over the others.
    """
    epoch = np.arange(run.epochs)
    if run.schedule == "cosine":
        warm = math.ceil(0.05 * run.epochs)
        falling = 0.5 * (1 + np.cos(np.pi * (epoch - warm) / max(1, run.epochs - warm)))
        return run.lr * np.where(epoch < warm, (epoch + 1) / warm, falling)
    drops = (epoch >= run.epochs // 3).astype(int) + (epoch >= 2 * run.epochs // 3)
    return run.lr * 0.1 ** (drops if run.schedule == "step" else np.zeros(run.epochs))


def lr_per_step(run: Run, n_train: int) -> np.ndarray:
    """Learning rate of each step [epochs * ceil(n_train / batch_size)], the last, smaller batch of an epoch kept."""
    return np.repeat(lr_schedule(run), math.ceil(n_train / run.batch_size))


def decay_budget(history: History) -> float:
    """wd times the sum of the learning rates of all steps: what carries weight decay over from one scale to another."""
    return history.run.wd * float(lr_per_step(history.run, history.info["n_train"]).sum())


def exact_law(history: History) -> np.ndarray:
    """NC0 after each step relative to its start [steps + 1] by `theory.nc0_law`, from the Run alone: SGD and SGDW only."""
    run = history.run
    if run.rule != "sgd" or (run.coupled_wd and run.decoupled_wd):
        raise ValueError(f"optimizer = {run.optimizer!r} is not allowed: only SGD and SGDW follow the law")
    rates = lr_per_step(run, history.info["n_train"])
    return np.abs(theory.nc0_law(rates, run.coupled_wd or run.decoupled_wd, run.momentum, coupled=not run.decoupled_wd))


def measured_epochs(run: Run) -> list[int]:
    """Epochs after which everything is measured, 0 (untrained) and the last always among them.

    "log": about a fifth of all epochs, log-spaced, so that measuring (a third of an epoch's work each) stays under a
    tenth of training.
    """
    if run.measure == "every":
        return list(range(run.epochs + 1))
    if run.measure == "ends":
        return [0, run.epochs]
    spaced = np.geomspace(1, run.epochs, max(2, run.epochs // 5)).round().astype(int)
    return [0, *np.unique(spaced).tolist()]


def make_model(run: Run, dataset: data.Dataset, device: torch.device) -> torch.nn.Module:
    """The untrained network of a Run, seeded by it: the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = NETS[run.net][run.arch](run.width, dataset.train_images.shape, dataset.n_classes)
    return model.to(device, memory_format=torch.channels_last)


def run_optimizer(model: torch.nn.Module, run: Run) -> torch.optim.Optimizer:
    """The Run's optimizer over all parameters of the network."""
    settings = {"rule", "lr", "momentum", "coupled_wd", "decoupled_wd", "beta2", "eps", "decay_on"}
    return make_optimizer(model.parameters(), **run.model_dump(include=settings))


def features_of(model, images: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Features [N, p] in float32; with precision "bf16" the backbone computes in bfloat16."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = model.features(images)
    return features.float()


def train(
    run: Run,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> History:
    """Trains `run` and measures it along the way, on `threads` CPU threads (default: torch's; one for a narrow network,
    which loses by more wherever cores are shared).

    With `checkpoint`, a file, the state is kept there every CHECKPOINT_SECONDS; if the file exists, training goes on from it
    to the same result. It is the caller's to remove once the result is safe, as `Store.put` does.
    Classifier, loss, weights and optimizer state are float32 whatever the precision: 1^T gradient = 0 must survive,
    or NC0 would measure rounding. A loss that stops being finite ends the run (`History.diverged`).
    Raises ValueError or FileNotFoundError where the data, the device or their fit to the run are wrong, MemoryError where
    the network would not fit.
    """
    device, threads_before = machine.pick_device(device), torch.get_num_threads()
    wide = run.width >= 32
    torch.set_num_threads(threads or (threads_before if wide else 1))
    benchmark_before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # a GPU's fastest kernels
    torch.set_flush_denormal(True)  # a network that decays to zero would otherwise take half as long again
    if wide and device.type == "cpu":
        machine.keep_freed_memory(True)
    try:
        return _train(run, device, progress, checkpoint)
    finally:
        if wide and device.type == "cpu":
            machine.keep_freed_memory(False)
        torch.set_flush_denormal(False)
        torch.backends.cudnn.benchmark = benchmark_before
        torch.set_num_threads(threads_before)


def _train(run: Run, device: torch.device, progress: bool, checkpoint: Path | None) -> History:
    started = time.perf_counter()
    dataset = data.load(run.dataset, run.n_train, run.n_test, str(device), run.image_size, run.fit, run.scale)
    images, labels = dataset.train_images, dataset.train_labels
    n = len(labels)
    if 1 in (run.batch_size, n % run.batch_size) and run.arch in ("resnet9", "vgg9", "resnet50"):
        raise ValueError(
            f"batch_size = {run.batch_size} is not allowed with {n} training images: the last batch would hold one "
            "image, which BatchNorm cannot train on; use another batch_size or n_train"
        )
    _check_memory(run, dataset, device)
    state = _begin(run, dataset, device)
    measured, schedule = set(measured_epochs(run)), lr_schedule(run)
    done = 0
    if checkpoint and checkpoint.exists():
        try:
            done, rows, spent, measuring = _restore(checkpoint, run, *state)
            started -= spent
        except Exception as error:  # noqa: BLE001 - a file from elsewhere can be wrong in any way
            set_aside(checkpoint, f"it is not a whole checkpoint of this run ({type(error).__name__})")
            state = _begin(run, dataset, device)
    model, optimizer, order = state
    if not done:
        start = time.perf_counter()
        rows = [{"epoch": 0, "step": 0, "lr": schedule[0], **_measure(model, dataset, run)}]
        measuring = time.perf_counter() - start
    diverged, kept, step = None, time.perf_counter(), Step(model, optimizer, run)
    with machine.progress_bar(run.epochs, f"{run.optimizer} {run.dataset}", "epoch", progress) as bar:
        bar.update(done)
        for epoch, lr in enumerate(schedule[done:], start=done + 1):
            for group in optimizer.param_groups:
                group["lr"] = float(lr)
            loss = _epoch(step, images, labels, order)
            if not math.isfinite(loss):
                diverged = epoch
                break
            if epoch in measured:
                start = time.perf_counter()
                measurement = _measure(model, dataset, run)
                if not math.isfinite(measurement["train_loss"]):
                    diverged = epoch
                    break
                rows.append({"epoch": epoch, "step": epoch * math.ceil(n / run.batch_size), "lr": lr, **measurement})
                measuring += time.perf_counter() - start
            if checkpoint and time.perf_counter() - kept > CHECKPOINT_SECONDS and epoch < run.epochs:
                kept = time.perf_counter()
                _keep(checkpoint, run, model, optimizer, order, (epoch, rows, kept - started, measuring))
            bar.set_postfix_str(f"loss {loss:.3g}, NC0 {rows[-1]['nc0']:.3g}", refresh=False)
            bar.update()
    info = {
        "diverged_epoch": diverged,
        "n_train": n,
        "n_classes": dataset.n_classes,
        "device": machine.device_name(device),
        "threads": torch.get_num_threads(),
        "wall_s": round(time.perf_counter() - started, 3),
        "measuring_s": round(measuring, 3),
        "torch": torch.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "choices": CHOICES,
    }
    import pandas as pd  # takes as long to import as all else beside torch, and not everyone trains

    return History(run, pd.DataFrame(rows), info)


def _begin(run: Run, dataset: data.Dataset, device: torch.device) -> tuple:
    """Network, optimizer and the generator of the samples' order, as they are before the first epoch."""
    model = make_model(run, dataset, device)
    return model, run_optimizer(model, run), torch.Generator().manual_seed(run.seed)


def _keep(checkpoint: Path, run: Run, model, optimizer, order, progress: tuple) -> None:
    """The state of training in a file, whole or not at all, and of nothing but tensors, numbers and text."""
    epoch, rows, spent, measuring = progress
    grams = [torch.from_numpy(row["gram"]) for row in rows if "gram" in row]
    state = {"run": run.hash, "progress": (epoch, [_numbers(row) for row in rows], grams, spent, measuring)}
    state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "order": order.get_state()}
    content = io.BytesIO()
    torch.save(state, content)
    try:
        write_whole(checkpoint, content.getbuffer())
    except OSError as error:  # the run may still end well
        warnings.warn(f"training goes on without a new checkpoint: {error}", stacklevel=3)


def _restore(checkpoint: Path, run: Run, model, optimizer, order) -> tuple:
    state = torch.load(checkpoint, next(model.parameters()).device, weights_only=True)
    if state["run"] != run.hash:
        raise ValueError("another run's")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    order.set_state(state["order"].cpu())
    epoch, rows, grams, spent, measuring = state["progress"]
    rows = [row | {"gram": gram.cpu().numpy()} for row, gram in zip(rows, grams)] if grams else rows
    return epoch, rows, spent, measuring


def _check_memory(run: Run, dataset: data.Dataset, device: torch.device) -> None:
    """Refuses a network that cannot fit, before memory runs out."""
    least = least_memory(run, dataset.train_images.shape, dataset.n_classes)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.free_memory()
    if least > free:
        raise MemoryError(
            f"width = {run.width} is not allowed here: {run.arch} at batch_size {run.batch_size} on {len(dataset.train_labels):,} "
            f"samples takes at least {least / 1e9:,.1f} GB of memory, {free / 1e9:.1f} GB are free; use a smaller width or batch"
        )


def least_memory(run: Run, shape: tuple[int, ...], n_classes: int) -> int:
    """Bytes that training on images [N, C, H, W] takes beside them, counted low: weights, gradients, optimizer state, the
    features of one evaluation, and one batch's outputs of all layers with weights."""
    batch, outputs = min(run.batch_size, shape[0]), []
    with torch.device("meta"):  # shapes without storage
        model = NETS[run.net][run.arch](run.width, shape, n_classes)
        # the first pass on this device imports for two seconds, which a small network need not wait for
        if run.arch != "ufm" and run.width * batch * math.prod(shape[2:]) > 2**22:
            for module in model.modules():
                if next(module.parameters(recurse=False), None) is not None:
                    module.register_forward_hook(lambda _, __, out: outputs.append(getattr(out, "nbytes", 0)))
            model.features(torch.empty(batch, *shape[1:]))
    states = 2 + {"adam": 2}.get(run.rule, int(run.momentum > 0))
    weights = sum(p.nbytes for p in model.parameters())
    features = 4 * shape[0] * model.classifier.in_features
    return states * weights + features + sum(outputs) // (2 if run.precision == "bf16" else 1)


def _epoch(step: Step, images, labels, order) -> float:
    """One pass over the training set; returns its mean loss, read back once so that a GPU never waits."""
    step.model.train()
    total = torch.zeros((), device=labels.device)
    for x, y in _batches(images, labels, step.run.batch_size, order):
        total += step(x, y) * len(y)
    return float(total) / len(labels)


class Step:
    """A training step (x, y) -> loss. On a GPU a CUDA graph replays it, so that no kernel waits for Python.

    A graph holds the learning rate as a number: it is captured anew when the rate changes, after `WARM_UP` ordinary steps.
    The last, smaller batch of an epoch is an ordinary step, too, and so is every one of a rule that a notebook added.
    """

    WARM_UP = 3

    def __init__(self, model, optimizer, run: Run):
        self.model, self.optimizer, self.run = model, optimizer, run
        self.graphed = model.classifier.weight.is_cuda and run.rule in ("sgd", "adam", "signum")
        self.size = self.rate = self.replay = None

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.size = self.size or len(y)
        if not self.graphed or len(y) != self.size:
            return self._take(x, y)
        if self.rate != (rate := self.optimizer.param_groups[0]["lr"]):
            self.rate, self.replay, self.left = rate, None, self.WARM_UP
        if self.left:
            self.left -= 1
            return _aside(lambda: self._take(x, y))
        if self.replay is None:
            self.x, self.y = x.clone(), y.clone()
            self.replay = _captured(self._take_static)
        self.x.copy_(x)
        self.y.copy_(y)
        self.replay()
        return self.loss

    def _take(self, x, y):
        loss = F.cross_entropy(self.model.classifier(features_of(self.model, x, self.run.precision)), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _take_static(self):
        self.loss = self._take(self.x, self.y)


def _captured(call):
    """The kernels of `call` as a CUDA graph, not yet run: a function that runs them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _aside(call):
    """`call` on a stream of its own, as the steps before a capture must be."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = call()
    current.wait_stream(stream)
    return result


def _batches(images, labels, size, order):
    """The samples in random order, `size` at a time. A full batch is taken as it lies: its order does not matter."""
    if size >= len(labels) and not isinstance(images, data.Streamed):
        yield images[:], labels
        return
    indices = torch.randperm(len(labels), generator=order).to(labels.device).split(size)
    for x, i in zip(data.batches(images, indices), indices):
        yield x, labels[i]


@torch.inference_mode()
def evaluate(model, images, labels: torch.Tensor, precision: str = "float32", batch_size: int = 128):
    """One forward pass in evaluation mode -> (features [N, p] float32, mean cross-entropy, share of right classes).

    A batch of the training's size stays in a CPU's cache; one of 1,000 takes twice as long. A GPU wants large ones.
    """
    batch_size = max(batch_size, 2048) if labels.is_cuda else batch_size
    model.eval()
    features = torch.empty(len(labels), model.classifier.in_features, device=labels.device)
    if isinstance(images, data.Streamed):
        parts = data.batches(images, torch.arange(len(labels)).split(batch_size))
    else:
        parts = (images[i : i + batch_size] for i in range(0, len(labels), batch_size))
    for part, batch in zip(features.split(batch_size), parts):
        part.copy_(features_of(model, batch, precision))
    logits = model.classifier(features)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return features, float(F.cross_entropy(logits.double(), labels)), float(accuracy)


def _measure(model, dataset, run) -> dict:
    """A row of the History. The training set passes through the network once for the loss and all metrics."""
    test, test_loss, test_acc = evaluate(model, dataset.test_images, dataset.test_labels, run.precision, run.batch_size)
    features, train_loss, train_acc = evaluate(
        model, dataset.train_images, dataset.train_labels, run.precision, run.batch_size
    )
    row = {"train_loss": train_loss, "train_acc": train_acc, "test_loss": test_loss, "test_acc": test_acc}
    if not math.isfinite(train_loss):
        return row
    weight, bias = model.classifier.weight.detach(), model.classifier.bias
    means = metrics.class_means(features, dataset.train_labels, dataset.n_classes)
    row |= metrics.nc_metrics(features, dataset.train_labels, weight, bias, means=means)
    row["nc4_test"] = metrics.nc4(test, means, weight)
    row["w_sv_min"], row["w_sv_mean"] = metrics.singular_values(weight)
    centred, w = means - means.mean(0), weight.double()
    row["m_sv_min"], row["m_sv_mean"] = metrics.singular_values(centred)
    if dataset.n_classes <= 32:
        grams = torch.stack([centred @ centred.T, w @ w.T, w @ centred.T])
        row["gram"] = grams.float().flatten().cpu().numpy()
    return row


def _one_sentence(error: ValidationError, fields) -> str:
    first = error.errors()[0]
    if isinstance(fault := first.get("ctx", {}).get("error"), _NotAllowed):
        return str(fault)
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return unknown(name, fields, "allowed are")
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ").replace("should be", "it must be")
    return f"{name} = {shorten(first['input'])} is not allowed: {message}"


def unknown(name: str, known, these: str) -> str:
    """The sentence about a mistyped parameter."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown parameter {name!r}: {hint}{these} {', '.join(known)}"


def shorten(value) -> str:
    """A value for a message: in a parameter file from a stranger it may be of any size."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
