"""Run (what is trained), History (what was measured), and what follows from a Run alone: its rates, its law, its epochs."""

from __future__ import annotations

import contextvars
import functools
import hashlib
import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ncutils import data, theory
from ncutils.models import ARCHITECTURES, NETS
from ncutils.optimizers import NAMES, OWN_RULES, RULES, check_rule, did_you_mean, find_rule

if TYPE_CHECKING:
    import pandas as pd

# Part of every Run's hash: raise it when a change of the code changes what a Run gives.
PROTOCOL = 1


def _pairs(options):
    """A mapping of settings, or the pairs that a stored Run has, as sorted pairs: a Run is hashable."""
    try:
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(options).items()}
    except (TypeError, ValueError):
        settings = {0: None}
    for name, value in settings.items():
        for v in value if isinstance(value, tuple) else (value,):
            plain = isinstance(v, (int, str)) or (isinstance(v, float) and math.isfinite(v))
            if not isinstance(name, str) or not plain:
                raise ValueError(
                    "it must be a mapping of the rule's settings, such as {nesterov: true}, to numbers, texts or lists of them"
                )
    return tuple(sorted(settings.items()))


# whether a Run is one that was trained: to try its rule anew would import a package and take seconds
_read_from_store = contextvars.ContextVar("read from a store", default=False)


class Run(BaseModel):
    """Everything that decides a result. Unknown fields and values out of range are refused in one sentence.

    A Run's name is the hash of the fields that differ from their defaults, so a default must never change once runs
    are stored; a new field must default to what was done before it existed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arch: Literal[tuple(ARCHITECTURES)] = "resnet9"  # type: ignore[valid-type]
    width: int = Field(8, ge=1, le=100_000, description="64 is the paper's; p = 8 width features")
    dataset: str = "digits"
    n_train: int | None = Field(None, ge=2, description="class-balanced subset; None: all")
    n_test: int | None = Field(None, ge=1, description="class-balanced subset; None: all")
    rule: str = Field("sgd", description="see optimizers.RULES and optimizers.find_rule")
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
    precision: Literal["float32", "bf16", "float64"] = Field(
        "float32", description="of the backbone; classifier, loss and weights are float32, with float64 that"
    )
    measure: Literal["log", "every", "ends"] = Field("log", description="which epochs are evaluated")
    image_size: int | None = Field(None, ge=4, description="pixels a side; a folder then stays on disk")
    net: Literal[tuple(NETS)] = Field("book", description="see models.NETS")  # type: ignore[valid-type]
    fit: Literal["pad", "resize"] = Field("pad", description="how 28 x 28 images become 32 x 32")
    scale: Literal["measured", "published"] = Field("measured", description="see data.PUBLISHED")
    augment: Literal["none", "crop-flip", "crop-flip-measured"] = Field(
        "none",
        description="training images in each step, or in the passes that measure, too: see data.CropFlip",
    )

    options: Annotated[tuple[tuple[str, Any], ...], BeforeValidator(_pairs)] = Field(
        (), description="settings of the rule beside the fields above, by name"
    )
    head_coupled_wd: float | None = Field(None, ge=0, description="of the classifier; None: coupled_wd")
    head_decoupled_wd: float | None = Field(None, ge=0, description="of the classifier; None: decoupled_wd")
    centre_head: Literal["never", "step", "gradient"] = Field(
        "never", description="takes the mean row off W after each step, or off its gradient before each"
    )

    @model_validator(mode="after")
    def _rule_fits(self) -> Run:
        """Looked up when a Run is made, so that a rule which a notebook adds to RULES is one, too."""
        if _read_from_store.get() and (self.rule in RULES or self.rule in theory.row_sums()):
            return self
        if self.rule in RULES and self.rule not in OWN_RULES and self.rule in theory.row_sums():
            raise ValueError(
                f"rule = {self.rule!r} is not allowed: RULES has it and so has a library, and a Run's name would not tell "
                "the two apart; call the one in RULES otherwise"
            )
        check_rule(self.rule, self.options, self.momentum)
        if self.rule not in RULES:
            for name in ("beta2", "eps"):
                if (value := getattr(self, name)) != Run.model_fields[name].default:
                    raise ValueError(
                        f"{name} = {value!r} is not allowed: rule {self.rule!r} has its own, see `options`"
                    )
        return self

    @model_validator(mode="after")
    def _fields_fit(self) -> Run:
        if self.arch not in NETS[self.net]:
            known = ", ".join(NETS[self.net])
            raise ValueError(
                f"net = {self.net!r} is not allowed: there is none of arch {self.arch!r}, only of {known}"
            )
        if self.scale == "published" and self.dataset not in data.PUBLISHED:
            known = ", ".join(data.PUBLISHED)
            why = f"none is known for dataset {shorten(self.dataset)}, only for {known}"
            raise ValueError(f"scale = {self.scale!r} is not allowed: {why}")
        if self.augment != "none" and (self.arch == "ufm" or self.dataset in data.NO_IMAGES):
            name = "arch" if self.arch == "ufm" else "dataset"
            why = f"{name} {getattr(self, name)!r} has no images to crop, so it must be 'none'"
            raise ValueError(f"augment = {self.augment!r} is not allowed: {why}")
        return self

    def __init__(self, **fields):
        for name, value in fields.items():
            if isinstance(value, bool):
                raise ValueError(f"{name} = {value!r} is not allowed: no field is true or false")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(_one_sentence(error, type(self).model_fields)) from None

    @classmethod
    def named(cls, optimizer: str, wd: float, **fields) -> Run:
        """A Run by the name of its optimizer and its one weight decay: one of the paper's (SGD, SGDW, Adam, AdamW, Signum,
        SignumW), or a rule's own, with W at its end for decoupled decay (lion, lionW)."""
        if not isinstance(optimizer, str) or not optimizer:
            raise ValueError(f"optimizer = {shorten(optimizer)} is not allowed: it must be a name")
        if optimizer in NAMES:
            rule, decay = NAMES[optimizer]
        else:
            rule = optimizer.removesuffix("W")
            decay = "coupled_wd" if rule == optimizer else "decoupled_wd"
            try:
                RULES.get(rule) or find_rule(rule)
            except ValueError as error:
                missing = "; " + str(error).split("and the ")[1] if "installed" in str(error) else ""
                raise ValueError(
                    f"optimizer = {shorten(optimizer)} is not allowed: use one of {', '.join(NAMES)}, or a rule's own name, "
                    f"with W at its end for decoupled decay{missing}"
                ) from None
        if said := {"rule", decay} & fields.keys():
            raise ValueError(
                f"{min(said)} is not allowed beside a name and wd, which say it: optimizer = {optimizer!r}"
            )
        try:
            return cls(rule=rule, **{decay: wd}, **fields)
        except ValueError as error:
            raise ValueError(re.sub(rf"^{decay}\b", "wd", str(error))) from None

    @classmethod
    def released(cls, optimizer: str, wd: float, *, dataset: str, **fields) -> Run:
        """`Run.named` with all that the authors' released code decides beside it: their network, images resized, their
        normalisation, CIFAR10 augmented, when it is measured, too. The decay is the one asked for, where the AdamW of their
        ResNet9 and VGG9 always has 0.01."""
        cifar10 = dataset in ("CIFAR10", "cifar10-jpeg")
        theirs = {"net": "released", "fit": "resize", "scale": "published"}
        theirs["augment"] = "crop-flip-measured" if cifar10 else "none"
        return cls.named(optimizer, wd, dataset=dataset, **theirs | fields)

    @classmethod
    def stored(cls, fields: dict) -> Run:
        """The Run that a store holds. Its rule may be of a package that is not here: it is read, not trained."""
        token = _read_from_store.set(True)
        try:
            return cls(**fields)
        finally:
            _read_from_store.reset(token)

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
        """The paper's name of rule and decay, or `rule`, `ruleW`; the coupled one's at wd 0, "Adam+W" and the like where both are set."""
        names = [name for name, (rule, _) in NAMES.items() if rule == self.rule]
        coupled, decoupled = names or (self.rule, f"{self.rule}W")  # a rule that has no names in the paper
        if self.coupled_wd and self.decoupled_wd:
            return f"{coupled}+W"
        return decoupled if self.decoupled_wd else coupled


def same_steps(run: Run) -> Run:
    """The Run that stands for all those that take its steps but for rounding: without momentum SGD and SGDW both take
    lr * (gradient + wd * w) off the weights w, at every decay, and SGD stands for the two. Any other Run stands for
    itself, one whose head has a decay of its own among them.
    """
    of_head = run.head_coupled_wd is not None or run.head_decoupled_wd is not None
    if run.rule != "sgd" or run.momentum or run.coupled_wd or of_head:
        return run
    return run.model_copy(update={"coupled_wd": run.decoupled_wd, "decoupled_wd": 0.0})


@dataclass(frozen=True, eq=False)  # frames have no one answer to ==
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
        return numbers(dict(self.frame.iloc[-1]))

    @property
    def grams(self) -> np.ndarray:
        """M^T M, W W^T and W M of each measured epoch [rows, 3, K, K], float32: the geometry NC2 and NC3 depend on."""
        k = self.info["n_classes"]
        return np.stack(self.frame["gram"].to_numpy()).reshape(-1, 3, k, k)

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite."""
        return self.info.get("diverged_epoch") is not None

    @property
    def valid(self) -> bool:
        """The paper's filter: not diverged, at least 99 % training accuracy; 50 % for a transformer (its Figure 45)."""
        return not self.diverged and bool(self.final["train_acc"] >= self.least_accuracy)

    @property
    def least_accuracy(self) -> float:
        """Training accuracy under which the paper drops a run."""
        return 0.5 if self.run.arch == "vit" else 0.99


def numbers(row: dict) -> dict:
    """A row's numbers, without `gram`, as Python's own."""
    return {name: v.item() if isinstance(v, np.generic) else v for name, v in row.items() if name != "gram"}


def lr_schedule(run: Run) -> np.ndarray:
    """Learning rate of each epoch [epochs].

    "step" divides by 10 after epochs // 3 and 2 epochs // 3 (66, 133 of 200), so that one epoch has a hundredth of lr.
    "cosine" rises linearly over the first 5 % of the epochs and falls along half a cosine over the others.
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
    """Wd times the sum of the learning rates of all steps: what carries weight decay over from one scale to another."""
    return history.run.wd * float(lr_per_step(history.run, history.info["n_train"]).sum())


def exact_law(history: History) -> np.ndarray:
    """NC0 after each step relative to its start [steps + 1] by `theory.nc0_law`, from the Run alone.

    Of SGD and SGDW, and with decoupled decay alone of every rule that keeps row sums, if only in exact arithmetic
    (`theory.row_sums`).
    Raises ValueError for other runs.
    """
    run = history.run
    coupled = run.coupled_wd if run.head_coupled_wd is None else run.head_coupled_wd
    decoupled = run.decoupled_wd if run.head_decoupled_wd is None else run.head_decoupled_wd
    if run.centre_head == "step":
        raise ValueError("centre_head = 'step' is not allowed: NC0 is then 0 after each step")
    known = theory.row_sums().get(run.rule, ("breaks", ""))[0] in ("keeps", "exact")
    if not known or (coupled and (decoupled or run.rule != "sgd")):
        raise ValueError(f"optimizer = {run.optimizer!r} is not allowed: it does not follow the law")
    if run.options and (coupled or run.rule != "sgd"):  # scion's "constraint" decays by itself
        why = "the law of coupled decay is plain SGD's" if coupled else "what they change is not known"
        raise ValueError(f"options = {dict(run.options)!r} is not allowed: {why}")
    rates = lr_per_step(run, history.info["n_train"])
    return np.abs(theory.nc0_law(rates, coupled or decoupled, run.momentum, coupled=not decoupled))


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


def _one_sentence(error: ValidationError, fields) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # of the whole Run: a sentence already
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return unknown(name, fields, "allowed are")
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    message = message.replace("should be", "it must be")
    return f"{name} = {shorten(first['input'])} is not allowed: {message}"


def unknown(name: str, known, these: str) -> str:
    """The sentence about a mistyped parameter."""
    return f"unknown parameter {name!r}: {did_you_mean(name, known)}{these} {', '.join(known)}"


def shorten(value) -> str:
    """A value for a message: in a parameter file from a stranger it may be of any size."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
