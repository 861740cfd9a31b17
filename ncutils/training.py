"""`train(run) -> History`: epoch after epoch, a log of what was measured, checkpoints."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ncutils import data, machine
from ncutils.files import set_aside, write_whole
from ncutils.models import NETS
from ncutils.optimizers import set_lr
from ncutils.runs import History, Run, lr_per_step, lr_schedule, measured_epochs, numbers
from ncutils.step import Step, epoch, make_model, measure, run_optimizer

__all__ = ["History", "Run", "least_memory", "lr_per_step", "make_model", "train"]

CHECKPOINT_SECONDS: str | float = os.environ.get("NCUTILS_CHECKPOINT_SECONDS") or 300.0

# What the paper leaves open and no field of Run decides; stored with every History.
CHOICES = {
    "initialisation": "PyTorch's default; for the ViT of net = 'released' its own",
    "metrics": "features of the whole training set in evaluation mode",
}


def train(
    run: Run,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    on_checkpoint: Callable[[bytes], object] | None = None,
) -> History:
    """Trains `run` and measures it along the way, on `threads` CPU threads (default: torch's; one for a narrow network,
    which loses by more wherever cores are shared).

    With `checkpoint`, a file, the state is kept there every CHECKPOINT_SECONDS; if the file exists, training goes on from it
    to the same result. It is the caller's to remove once the result is safe, as `Store.put` does. `on_checkpoint` is
    given the content of each that was written.
    Classifier, loss, weights and optimizer state are float32 or better whatever the precision: 1^T gradient = 0 must survive,
    or NC0 would measure rounding. A loss that stops being finite ends the run (`History.diverged`).
    Raises ValueError or FileNotFoundError where the data, the device or their fit to the run are wrong, MemoryError where
    the network would not fit.
    """
    device = machine.pick_device(device, run.precision)
    path, every = None if checkpoint is None else Path(checkpoint), checkpoint_seconds()
    if path and path.is_dir():
        raise ValueError(f"checkpoint = {str(path)!r} is not allowed: it is a folder, and must be a file")
    with machine.set_for_training(device, threads, wide=run.width >= 32):
        started = kept = time.perf_counter()
        dataset = data.load(
            run.dataset, run.n_train, run.n_test, str(device), run.image_size, run.fit, run.scale
        )
        _check_batches(run, dataset)
        check_memory(run, dataset, device)
        state = State.restored(path, run, dataset, device) or State(run, dataset, device)
        started -= state.spent
        step, diverged = Step(state.model, state.optimizer, run), None
        rates, measured = lr_schedule(run), set(measured_epochs(run))
        if not state.epoch:
            state.log(rates[0])
        with machine.progress_bar(run.epochs, f"{run.optimizer} {run.dataset}", "epoch", progress) as bar:
            bar.update(state.epoch)
            for lr in rates[state.epoch :]:
                set_lr(state.optimizer, float(lr))
                loss = epoch(step, dataset.train_images, dataset.train_labels, state.order, state.augment)
                state.epoch += 1
                if not math.isfinite(loss) or (state.epoch in measured and not state.log(lr)):
                    diverged = state.epoch
                    break
                if path and time.perf_counter() - kept > every and state.epoch < run.epochs:
                    kept = time.perf_counter()
                    state.spent = kept - started
                    content = state.keep(path)
                    if on_checkpoint and content:
                        on_checkpoint(content)
                nc0 = state.rows[-1].get("nc0", math.nan)
                bar.set_postfix_str(f"loss {loss:.3g}, NC0 {nc0:.3g}", refresh=False)
                bar.update()
        info = {
            "diverged_epoch": diverged,
            "n_train": len(dataset.train_labels),
            "n_classes": dataset.n_classes,
            "device": machine.device_name(device),
            "threads": torch.get_num_threads(),
            "step": step.way,
            "wall_s": round(time.perf_counter() - started, 3),
            "measuring_s": round(state.measuring, 3),
            "torch": torch.__version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "choices": CHOICES,
        }
    import pandas as pd  # takes as long to import as all else beside torch, and not everyone trains

    return History(run, pd.DataFrame(state.rows), info)


def checkpoint_seconds() -> float:
    """CHECKPOINT_SECONDS as a number. Raises ValueError where the environment's is none."""
    with contextlib.suppress(ValueError):
        if (seconds := float(CHECKPOINT_SECONDS)) >= 0:
            return seconds
    raise ValueError(
        f"NCUTILS_CHECKPOINT_SECONDS = {CHECKPOINT_SECONDS!r} is not allowed: it must be a number of seconds, 0 or more"
    )


class State:
    """A training between two epochs: network, optimizer, the generator of the samples' order and of their augmentation, the
    number of epochs done, the measured rows, and the seconds spent so far and on measuring. A checkpoint holds it, as tensors,
    numbers and text alone; with the network the generator of its dropout's masks."""

    def __init__(self, run: Run, dataset: data.Dataset, device: torch.device):
        self.run, self.dataset = run, dataset
        self.model = make_model(run, dataset, device)
        self.optimizer = run_optimizer(self.model, run)
        self.order = torch.Generator().manual_seed(run.seed)
        self.augment = data.CropFlip(dataset.black, self.order) if run.augment != "none" else None
        self.epoch, self.spent, self.measuring = 0, 0.0, 0.0
        self.rows: list[dict] = []

    def log(self, lr: float) -> bool:
        """Adds a row for the epoch just ended, unless the loss is no longer finite."""
        start = time.perf_counter()
        row = measure(self.model, self.dataset, self.run, self._augment_measured())
        self.measuring += time.perf_counter() - start
        if self.epoch and not math.isfinite(row["train_loss"]):
            return False
        step = self.epoch * math.ceil(len(self.dataset.train_labels) / self.run.batch_size)
        self.rows.append({"epoch": self.epoch, "step": step, "lr": lr, **row})
        return True

    def _augment_measured(self) -> data.CropFlip | None:
        """How the training images are augmented in the evaluation after this epoch: drawn anew from seed and epoch, so that
        training goes on as if there had been none."""
        if self.run.augment != "crop-flip-measured":
            return None
        # hashed to the 32 bits of a seed that torch's generator looks at
        (seed,) = np.random.SeedSequence((self.run.seed, self.epoch)).generate_state(1).tolist()
        return data.CropFlip(self.dataset.black, torch.Generator().manual_seed(seed))

    def keep(self, checkpoint: Path) -> bytes | None:
        """Writes a checkpoint, whole or not at all; its content, where it was written."""
        grams = [torch.from_numpy(row["gram"]) for row in self.rows if "gram" in row]
        progress = (self.epoch, [numbers(row) for row in self.rows], grams, self.spent, self.measuring)
        state = {"run": self.run.hash, "progress": progress, "order": self.order.get_state()}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        content = io.BytesIO()
        try:
            torch.save(state, content)
            content.seek(0)
            if beyond := torch.serialization.get_unsafe_globals_in_checkpoint(content):
                raise ValueError(f"rule {self.run.rule!r} keeps a {beyond[0]}, which none can hold")
            write_whole(checkpoint, content.getvalue())
        except Exception as error:  # a full disk, a stranger's state: the run may still end well
            warnings.warn(f"training goes on without a new checkpoint: {error}", stacklevel=3)
            return None
        return content.getvalue()

    @classmethod
    def restored(
        cls, checkpoint: Path | None, run: Run, dataset: data.Dataset, device: torch.device
    ) -> State | None:
        """The state that a checkpoint holds, or None. One that is not whole, or another run's, is set aside."""
        if checkpoint is None or not checkpoint.exists():
            return None
        self = cls(run, dataset, device)
        try:
            kept = torch.load(checkpoint, device, weights_only=True)
            if kept["run"] != run.hash:
                raise ValueError("another run's")
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.order.set_state(kept["order"].cpu())
            self.epoch, rows, grams, self.spent, self.measuring = kept["progress"]
        except (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # nothing is wrong with the file: the next call may read it
        except Exception as error:  # a file from elsewhere can be wrong in any way
            if "can't allocate memory" in str(error):  # a CPU's memory is full, as above
                raise
            set_aside(checkpoint, f"it is not a whole checkpoint of this run ({type(error).__name__})")
            return None
        self.rows = [row | {"gram": gram.cpu().numpy()} for row, gram in zip(rows, grams)] if grams else rows
        return self


def _check_batches(run: Run, dataset: data.Dataset) -> None:
    n = len(dataset.train_labels)
    if run.arch == "ufm" and isinstance(dataset.train_images, data.Streamed):
        raise ValueError(
            f"image_size = {run.image_size} is not allowed: arch 'ufm' has no images, so of a folder it must be None"
        )
    if 1 in (run.batch_size, n % run.batch_size) and run.arch in ("resnet9", "vgg9", "resnet50"):
        raise ValueError(
            f"batch_size = {run.batch_size} is not allowed with {n} training images: the last batch would hold one "
            "image, which BatchNorm cannot train on; use another batch_size or n_train"
        )


def check_memory(run: Run, dataset: data.Dataset, device: torch.device) -> None:
    """Refuses a network that cannot fit, before memory runs out."""
    least = least_memory(run, dataset.train_images.shape, dataset.n_classes)
    free = machine.free_memory(device=device)
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
    size = {"bf16": 0.5, "float64": 2}.get(run.precision, 1)  # of what the backbone computes, beside float32
    return int(max(1, size) * (states * weights + features) + size * sum(outputs))
