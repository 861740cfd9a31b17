"""A GPU's path as far as a CPU can tell: when a CUDA graph is used, what happens where it fails or lies, where tensors lie, and
what is said where the device gives out."""

import contextlib
import itertools
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from ncutils import data, machine, step, training
from ncutils.optimizers import RULES
from ncutils.training import Run, train

FIELDS = {
    "width": 2,
    "n_train": 650,
    "epochs": 4,
    "measure": "ends",
    "decoupled_wd": 0.1,
}  # 5 batches and one of 10


class StandIn:
    """Captures as CUDA does (Python runs once, the state stays as it was), and replays rightly or in a wrong way."""

    def __init__(self, how: str):
        self.how, self.captures, self.replays, self.steps = how, 0, 0, None

    def __call__(self, call):
        self.captures += 1
        if self.how == "fails" or (self.how == "works once" and self.captures > 1):
            raise RuntimeError("operation not permitted when stream is capturing\nof two lines")
        taken, kept = self.steps, {n: [t.clone() for t in ts] for n, ts in self.steps._state().items()}
        first = []

        def put_back(names):
            for name in names & kept.keys():
                for tensor, value in zip(taken._state()[name], kept[name]):
                    tensor.copy_(value)

        call()
        put_back(kept.keys())
        if self.how == "fails late":
            self.steps.optimizer.param_groups[0]["lr"] = 77.0
            raise torch.OutOfMemoryError("CUDA out of memory")

        def replay():
            self.replays += 1
            lr = [group["lr"] for group in taken.optimizer.param_groups]
            if self.how == "does nothing":
                return
            if self.how == "rate":
                for group in taken.optimizer.param_groups:
                    group["lr"] *= 1.01
            if self.how == "no decay":
                for group in taken.optimizer.param_groups:
                    group["decoupled_wd"], decay = 0.0, group["decoupled_wd"]
            if self.how == "no averages":
                taken.model.eval()
            if self.how == "first batch":
                gradient = type(taken).gradient
                taken.gradient = lambda x, y: gradient(
                    taken, *(first or first.extend((x.clone(), y.clone())) or first)
                )
            call()
            if self.how == "twice":
                call()
            if self.how == "no decay":
                for group in taken.optimizer.param_groups:
                    group["decoupled_wd"] = decay
            for group, rate in zip(taken.optimizer.param_groups, lr):
                group["lr"] = rate
            if self.how == "no averages":
                taken.model.train()
            if self.how == "first batch":
                del taken.gradient
            if self.how == "no state":
                put_back({"momentum_buffer", "exp_avg", "exp_avg_sq", "average"})
            if self.how == "no weights":
                put_back({"weights"})
            if self.how == "nan":
                next(taken.model.parameters()).data.fill_(torch.nan)

        return replay


@pytest.fixture
def graphed(monkeypatch):
    """Training as on a GPU, with a stand-in for the capture."""

    def use(how):
        stand_in = StandIn(how)

        class Graphed(step.Step):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.graphed, stand_in.steps = True, self

        monkeypatch.setattr(training, "Step", Graphed)
        monkeypatch.setattr(step, "_captured", stand_in)
        monkeypatch.setattr(step, "_aside", lambda call: call())
        return stand_in

    return use


def same(a, b) -> None:
    pd.testing.assert_frame_equal(
        a.frame.drop(columns="gram"), b.frame.drop(columns="gram"), check_exact=True
    )


LIES = [
    "does nothing",
    "rate",
    "no decay",
    "no averages",
    "first batch",
    "twice",
    "no state",
    "no weights",
    "nan",
]


@pytest.mark.parametrize("how", [*LIES, "fails", "fails late"])
@pytest.mark.parametrize("rule", ["sgd", "adam", "signum"])
def test_a_graph_that_fails_or_lies_changes_nothing_and_is_told_once(rule, how, graphed):
    run = Run(rule=rule, **FIELDS)
    ordinary = train(run, "cpu")
    stand_in = graphed(how)
    with pytest.warns(UserWarning) as told:
        found = train(run, "cpu")
    same(ordinary, found)
    (sentence,) = [str(w.message) for w in told]
    assert sentence.startswith("training goes on without a CUDA graph: ") and "\n" not in sentence
    assert stand_in.captures == 1 and stand_in.replays <= 3
    if how == "fails":
        assert "operation not permitted when stream is capturing of two lines" in sentence


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rule": "adam", "augment": "crop-flip"},
        {"rule": "adam", "augment": "crop-flip-measured"},
        {"rule": "signum", "precision": "bf16"},
        {"rule": "adam", "precision": "float64"},
        {"rule": "adam", "schedule": "cosine"},
        {"net": "released", "decay_on": "matrices"},
        {"arch": "mlp", "momentum": 0.0},
        {"arch": "vit"},
    ],
)
def test_a_graph_that_works_is_used_and_gives_the_ordinary_history(changes, graphed):
    run = Run(**FIELDS | changes)
    ordinary = train(run, "cpu")
    stand_in = graphed("works")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train(run, "cpu")
    same(ordinary, found)
    assert ordinary.info["step"] == "ordinary" and found.info["step"] == "graph"
    assert (
        stand_in.captures == 3 and stand_in.replays == 4 * 5
    )  # three prove a graph, three are ordinary before it


def test_a_run_says_that_its_graph_was_given_up_on_the_way(graphed):
    run = Run(**FIELDS)
    ordinary, stand_in = train(run, "cpu"), graphed("works once")
    with pytest.warns(UserWarning, match="^training goes on without a CUDA graph: operation not permitted"):
        found = train(run, "cpu")
    same(ordinary, found)
    assert found.info["step"] == "graph, then ordinary" and stand_in.captures == 2


def test_the_proof_leaves_the_state_as_it_was(graphed):
    """To the bit, the optimizer's step counts among it, and no gradient is left in a graph's memory."""
    graphed("works")
    run = Run(rule="adam", **FIELDS)
    dataset = data.load("digits", 650)
    states = [training.State(run, dataset, torch.device("cpu")) for _ in range(2)]
    steps = [step.Step(state.model, state.optimizer, run) for state in states]
    steps[0].graphed, step._captured.steps = True, steps[0]
    for i in range(step.Step.WARM_UP):
        batch = slice(100 * i, 100 * i + 100)
        for taken in steps:
            taken(dataset.train_images[batch], dataset.train_labels[batch])
    steps[0]._proven()
    ours, theirs = (taken._state() for taken in steps)
    assert ours.keys() == theirs.keys() >= {"weights", "running_mean", "exp_avg", "exp_avg_sq", "step"}
    assert all(torch.equal(a, b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True))

    assert (steps[0].way, steps[1].way) == ("graph", "ordinary")
    steps[0].ways.clear()
    steps[0].compiled = SimpleNamespace(features=states[0].model.features)  # as on a GPU, of a wide network
    steps[0]._proven()
    assert steps[0].way == "compiled graph"


def test_an_optimizer_that_counts_in_python_is_not_replayed(graphed, monkeypatch):
    """A graph would repeat the count of its capture, which three replays need not show."""

    class Counting(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            super().step()

    counting = lambda params, lr, momentum, wd, beta2, eps: Counting(params, lr, momentum, weight_decay=wd)  # noqa: E731
    monkeypatch.setitem(RULES, "sgd", counting)
    graphed("works")
    with pytest.warns(
        UserWarning, match="without a CUDA graph: the optimizer has state that is not on the GPU"
    ):
        train(Run(**FIELDS), "cpu")


# ---- where tensors lie

META = torch.device("meta")


@pytest.mark.parametrize(
    ("arch", "rule", "augment"),
    [
        *itertools.product(
            ("resnet9", "vgg9", "vit", "mlp"), ("sgd", "adam", "signum"), ("none", "crop-flip")
        ),
        ("ufm", "adam", "none"),
    ],
)
def test_all_that_a_step_touches_is_on_the_device(arch, rule, augment, monkeypatch):
    """Torch refuses to mix its device without storage with the CPU, as it refuses to mix a GPU with it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    run = Run(
        arch=arch,
        rule=rule,
        augment=augment,
        width=2,
        batch_size=256 if arch == "ufm" else 100,
        decoupled_wd=0.1,
    )
    images, labels = torch.empty(256, 1, 8, 8, device=META), torch.zeros(256, dtype=torch.long, device=META)
    dataset = data.Dataset(images, labels, images, labels, 10, torch.zeros(1, device=META))
    state = training.State(run, dataset, META)
    taken, total = step.Step(state.model, state.optimizer, run), torch.zeros((), device=META)
    for x, y in step.batches(images, labels, run.batch_size, state.order):
        total += taken(state.augment(x) if state.augment else x, y)
    touched = taken._state() | {"loss": [total]}
    touched.pop("step", None)  # Adam's count, which is on the device where that is a GPU (capturable)
    assert {tensor.device for tensors in touched.values() for tensor in tensors} == {META}


def test_pixels_stay_on_the_device():
    numbers = (torch.empty(1, 3, 1, 1, device=META) for _ in range(2))
    pixels = data.Pixels(torch.empty(256, 3, 32, 32, device=META, dtype=torch.uint8), *numbers)
    labels = torch.zeros(256, dtype=torch.long, device=META)
    augment = data.CropFlip(torch.zeros(3), torch.Generator())
    shapes = []
    for x, y in step.batches(pixels, labels, 100, torch.Generator()):
        assert augment(x).device == x.device == y.device == META
        shapes.append(tuple(x.shape))
    assert shapes == [(100, 3, 32, 32), (100, 3, 32, 32), (56, 3, 32, 32)]


# ---- a device that gives out


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            MemoryError,
            "^the memory of .* is full: use a smaller width",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"),
            MemoryError,
            "^the machine's memory is full",
        ),
        (
            torch.AcceleratorError("CUDA error: device lost\nmore"),
            OSError,
            r"^the cpu device failed \(CUDA error: device lost\); ",
        ),
        # of libraries that do not say it by that class
        (
            RuntimeError("cuDNN error: EXECUTION_FAILED\nmore"),
            OSError,
            r"^the cpu device failed \(cuDNN error",
        ),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when"), OSError, r"^the cpu device failed \(CUBLAS"),
        (RuntimeError("another"), RuntimeError, "^another$"),
    ],
)
def test_a_device_that_gives_out_while_training(error, kind, sentence, monkeypatch):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(training, "epoch", failing)
    before = torch.get_num_threads()
    with pytest.raises(kind, match=sentence) as raised:
        train(Run(width=2, epochs=1), "cpu")
    assert "\n" not in str(raised.value) and torch.get_num_threads() == before


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("device", "named"),
    [
        *((name, name) for name in ("cuda", "cuda:1", "meta", "mps", "tpu9", "cuda:x", "cpu:x", "hpu", "")),
        (0, "cuda:0"),
        (True, "True"),
        (1.5, "1.5"),
    ],
)
def test_devices_that_are_not_there(device, named):
    if named in ("cuda", "cuda:0") and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(
        ValueError, match=f"^device = '{named}' is not to be had here: use 'cpu' or none"
    ) as error:
        machine.pick_device(device)
    assert "\n" not in str(error.value)


def test_a_device_that_is_there_and_does_not_answer_says_why(monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "empty", failing)
    with pytest.raises(
        ValueError, match=r"here \(CUDA error: all CUDA-capable devices are busy\): use 'cpu' or none or"
    ):
        machine.pick_device()


@pytest.mark.counts("bad inputs refused")
def test_a_card_that_lacks_bfloat16_is_named(monkeypatch):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch, "device", lambda *_: card)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100")
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert machine.pick_device("cuda") == card
        if supported:
            assert machine.pick_device("cuda", "bf16") == card
        else:
            with pytest.raises(
                ValueError, match="^precision = 'bf16' is not allowed here: Tesla P100 does not compute in"
            ):
                machine.pick_device("cuda", "bf16")


def test_a_compiled_network_takes_the_full_batches_alone():
    """The last, smaller batch of an epoch would have it compiled anew."""
    run = Run(rule="adam", **FIELDS)
    state = training.State(run, data.load("digits", 650), torch.device("cpu"))
    taken, seen = step.Step(state.model, state.optimizer, run), []
    images, labels = state.dataset.train_images, state.dataset.train_labels
    for n in (128, 128, 10):
        taken(images[:n], labels[:n])
        taken.compiled = SimpleNamespace(features=lambda x: seen.append(len(x)) or state.model.features(x))
    assert seen == [128]
