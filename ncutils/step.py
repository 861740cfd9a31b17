"""One step, one epoch, one evaluation of a Run's network."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from ncutils import data, metrics
from ncutils.models import NETS, Dropout
from ncutils.optimizers import RULES, make_optimizer, weights_layout
from ncutils.runs import Run


def make_model(run: Run, dataset: data.Dataset, device: torch.device) -> torch.nn.Module:
    """The untrained network of a Run, seeded by it: the same on every device. Dropout's masks are drawn there, from a generator
    that the Run seeds, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = NETS[run.net][run.arch](run.width, dataset.train_images.shape, dataset.n_classes)
    if found := dropouts(model):
        masks = torch.Generator(device).manual_seed(run.seed)
        for dropout in found:
            dropout.generator = masks
    layout = weights_layout(run.rule, run.options, run.momentum, RULES.get(run.rule))
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    return model.to(device, dtype, memory_format=layout)


def dropouts(model: torch.nn.Module) -> list[Dropout]:
    """The network's Dropout modules."""
    return [module for module in model.modules() if isinstance(module, Dropout)]


def run_optimizer(model: torch.nn.Module, run: Run) -> torch.optim.Optimizer:
    """The Run's optimizer over all parameters of the network, the classifier's named as its head."""
    settings = {*inspect.signature(make_optimizer).parameters} & {*Run.model_fields}
    head: Any = model.classifier
    return make_optimizer(model.parameters(), head=head.parameters(), **run.model_dump(include=settings))


def features_of(model, images: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Features [N, p] in float32; with precision "bf16" the backbone computes in bfloat16, with "float64" all is in that."""
    if precision == "float64":
        return model.features(images.double())
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = model.features(images)
    return features.float()


class Step:
    """A training step (x, y) -> loss. On a GPU a CUDA graph replays it, so that no kernel waits for Python; of a wide network's
    it is a compiled one (1.5 times as fast at width 64 on an H200, once half a minute has gone into it).

    A graph holds the learning rate as a number: it is captured anew when the rate changes, after `WARM_UP` ordinary steps,
    and used once it has proved itself on their batches (`_proven`); else training goes on in ordinary steps, as if there had
    been no graph, and a warning says why. The last, smaller batch of an epoch is an ordinary step, too, and so is every one
    of a rule beyond the paper's three, which may do other things at later steps, or of a network with dropout, whose
    generator a graph does not know.
    """

    WARM_UP = 3

    def __init__(self, model, optimizer, run: Run):
        self.model, self.optimizer, self.run = model, optimizer, run
        known = run.rule in ("sgd", "adam", "signum") and not dropouts(model)
        self.graphed = model.classifier.weight.is_cuda and known
        self.size: int | None = None
        self.rates: list[float] = []
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.replay: Callable | None = None
        self.compiled: SimpleNamespace | None = None  # with `features` as the model's
        self.ways: list[str] = []

    @property
    def way(self) -> str:
        """How the steps were taken: "ordinary", "graph", "compiled graph", or a graph "..., then ordinary"."""
        return ", then ".join(dict.fromkeys(self.ways)) or "ordinary"

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Images [n, C, H, W] and labels [n] -> the loss before the step."""
        self.size = self.size or len(y)
        if not self.graphed or len(y) != self.size:
            return self._take(x, y)
        if self.rates != (rates := [group["lr"] for group in self.optimizer.param_groups]):
            self.rates, self.seen, self.replay = rates, [], None
        if len(self.seen) < self.WARM_UP:
            self.seen.append((x.clone(), y.clone()))
            return _aside(lambda: self._take(x, y))
        if self.replay is None:
            self.replay = self._proven()
        return self.replay(x, y)

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Leaves the loss's gradient in the parameters; returns the loss."""
        network = self.compiled if self.compiled and len(y) == self.size else self.model
        features = features_of(network, x, self.run.precision)
        loss = F.cross_entropy(self.model.classifier(features), y)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def _take(self, x, y):
        loss = self.gradient(x, y)
        try:
            self.optimizer.step()
        except torch.linalg.LinAlgError:  # of a rule that factorises gradients
            if torch.isfinite(loss):
                raise
        return loss

    def _graph(self) -> Callable:
        """The step as a graph, not yet taken."""
        held: dict[str, torch.Tensor] = {}
        x, y = (part.clone() for part in self.seen[0])
        replay = _captured(lambda: held.update(loss=self._take(x, y)))

        def step(of_x, of_y):
            x.copy_(of_x)
            y.copy_(of_y)
            replay()
            return held["loss"]

        return step

    def _proven(self) -> Callable:
        """The step as a graph, if that takes the run's last steps as ordinary ones would; else the ordinary step.

        From the present state the last batches' steps are taken twice ordinarily and once by the graph, and the state is put
        back each time. Losses, weights, buffers and each part of the optimizer's state must end within a thousandth of the
        way they went, or ten times what the ordinary ends differ by (sums on a GPU may come in any order).
        """
        start = {name: [t.clone() for t in tensors] for name, tensors in self._state().items()}
        numbers = copy.deepcopy(self.optimizer.state_dict())

        def ends(step) -> dict[str, list[torch.Tensor]]:
            losses = torch.stack([step(x, y).clone() for x, y in self.seen])
            found = {"loss": [losses]}
            for name, tensors in self._state().items():
                found[name] = [tensor.clone() for tensor in tensors]
                for tensor, value in zip(tensors, start[name], strict=True):
                    tensor.copy_(value)
            return found

        try:
            beside = self._beside_a_graph()
            if self.run.width >= 32 and self.model.classifier.weight.is_cuda:
                self.compiled = SimpleNamespace(features=torch.compile(self.model.features, dynamic=False))
            ordinary, again = (_aside(lambda: ends(self._take)) for _ in range(2))
            if beside != self._beside_a_graph():
                raise ValueError("the optimizer has state that is not on the GPU, or moves")
            step = self._graph()
            replayed = ends(step)
            for name, end in ordinary.items():
                way = _distance(end, start.get(name))
                allowed = 1e-3 * way + 10 * _distance(end, again[name]) + 1e-7 * _distance(end)
                if not (off := _distance(end, replayed[name])) <= allowed:
                    raise ValueError(f"its {name} was off by {off:.2g} after {len(self.seen)} steps")
        except Exception as error:  # code and drivers of any kind must not spoil a run
            self.graphed, self.compiled = False, None
            if self.ways:
                self.ways.append("ordinary")
            self.optimizer.load_state_dict(numbers)
            for name, tensors in self._state().items():
                for tensor, value in zip(tensors, start[name], strict=True):
                    tensor.copy_(value)
            why = " ".join(str(error).split())
            warnings.warn(f"training goes on without a CUDA graph: {why:.300}", stacklevel=4)
            return self._take
        self.ways.append("compiled graph" if self.compiled else "graph")
        return step

    def _state(self) -> dict[str, list[torch.Tensor]]:
        """All tensors that a step changes: weights, buffers by name, and the optimizer's by name."""
        state = {"weights": [parameter.detach() for parameter in self.model.parameters()]}
        for name, buffer in self.model.named_buffers():
            state.setdefault(name.rpartition(".")[2], []).append(buffer)
        for of_parameter in self.optimizer.state.values():
            for name, value in of_parameter.items():
                if isinstance(value, torch.Tensor):
                    state.setdefault(name, []).append(value)
        return state

    def _beside_a_graph(self) -> list:
        """What the optimizer keeps that a graph cannot change: numbers, tensors elsewhere, and where the others lie."""
        device = self.model.classifier.weight.device
        kept: list = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        for of_parameter in self.optimizer.state.values():
            for value in of_parameter.values():
                if isinstance(value, torch.Tensor):
                    value = value.data_ptr() if value.device == device else value.tolist()
                kept.append(copy.deepcopy(value))
        return kept


def _distance(a: list[torch.Tensor], b: list[torch.Tensor] | None = None) -> float:
    """Euclidean distance of two lists of tensors, each taken as one vector; from zero without `b`."""
    b = b or [torch.zeros_like(t) for t in a]
    return math.sqrt(sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True)))


def _captured(call):
    """The kernels of `call` as a CUDA graph, not yet run: a function that runs them."""
    graph = torch.cuda.CUDAGraph()
    # a capture that fails leaves its own stream as the current one
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
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


def epoch(step: Step, images, labels, order, augment: data.CropFlip | None = None) -> float:
    """One pass over the training set; returns its mean loss, read back once so that a GPU never waits."""
    step.model.train()
    total = torch.zeros((), device=labels.device)
    for x, y in batches(images, labels, step.run.batch_size, order):
        total += step(augment(x) if augment else x, y) * len(y)
    return float(total) / len(labels)


def batches(images, labels, size, order):
    """The samples in random order, `size` at a time. A full batch is taken as it lies: its order does not matter."""
    if size >= len(labels) and not isinstance(images, data.Streamed):
        yield images[:], labels
        return
    indices = torch.randperm(len(labels), generator=order).to(labels.device).split(size)
    for x, i in zip(data.batches(images, indices), indices):
        yield x, labels[i]


@torch.inference_mode()
def evaluate(model, images, labels: torch.Tensor, run: Run, augment: data.CropFlip | None = None):
    """One forward pass in evaluation mode -> (features [N, p] of the classifier's type, mean cross-entropy, share of right classes).

    A batch of the training's size stays in a CPU's cache; one of 1,000 takes twice as long. A GPU wants large ones.
    """
    batch_size = max(run.batch_size, 2048) if labels.is_cuda else run.batch_size
    model.eval()
    shape = len(labels), model.classifier.in_features
    features = torch.empty(shape, dtype=model.classifier.weight.dtype, device=labels.device)
    if isinstance(images, data.Streamed):
        parts = data.batches(images, torch.arange(len(labels)).split(batch_size))
    else:
        parts = (images[i : i + batch_size] for i in range(0, len(labels), batch_size))
    for part, batch in zip(features.split(batch_size), parts):
        part.copy_(features_of(model, augment(batch) if augment else batch, run.precision))
    logits = model.classifier(features)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return features, float(F.cross_entropy(logits.double(), labels)), float(accuracy)


def measure(model, dataset, run, augment: data.CropFlip | None = None) -> dict:
    """A row of the History. The training set passes through the network once for the loss and all metrics, augmented where
    `augment` is given; the test set is never augmented."""
    tests = dataset.test_images, dataset.test_labels
    if run.arch == "ufm":  # has no test features, however many images there are
        tests = tests[0][:0], tests[1][:0]
    test, test_loss, test_acc = evaluate(model, *tests, run)
    trained_on = dataset.train_images, dataset.train_labels
    features, train_loss, train_acc = evaluate(model, *trained_on, run, augment)
    row = {"train_loss": train_loss, "train_acc": train_acc, "test_loss": test_loss, "test_acc": test_acc}
    if not math.isfinite(train_loss):
        return row
    weight, bias = model.classifier.weight.detach(), model.classifier.bias
    means = metrics.class_means(features, dataset.train_labels, dataset.n_classes)
    row |= metrics.nc_metrics(features, dataset.train_labels, weight, bias, means=means)
    overflown = not torch.isfinite(test).all()  # of a network that is about to diverge
    row["nc4_test"] = math.nan if overflown else metrics.nc4(test, means, weight)
    row["w_sv_min"], row["w_sv_mean"] = metrics.singular_values(weight)
    centred, w = means - means.mean(0), weight.double()
    row["m_sv_min"], row["m_sv_mean"] = metrics.singular_values(centred)
    if dataset.n_classes <= 32:
        grams = torch.stack([centred @ centred.T, w @ w.T, w @ centred.T])
        row["gram"] = grams.float().flatten().cpu().numpy()
    return row
