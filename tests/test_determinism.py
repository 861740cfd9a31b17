"""The same Run gives the same History: twice, elsewhere, in any order, from any side, and after any interruption."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ncutils import training
from ncutils.optimizers import RULES
from ncutils.store import Store
from ncutils.sweeps import train_all
from ncutils.training import Run, train
from tests.conftest import SOAK
from tests.test_chapters import papermill
from tests.test_data import make_folder

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {"lr": 0.05, "epochs": 3, "width": 4, "batch_size": 100}


def same(a, b):
    assert a.run == b.run
    pd.testing.assert_frame_equal(
        a.frame.drop(columns="gram"), b.frame.drop(columns="gram"), check_exact=True
    )
    assert np.array_equal(a.grams, b.grams)


def in_a_process_of_its_own(code, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=ROOT)


def test_here_there_and_in_any_order(tmp_path, monkeypatch, count):
    """Here after another run; from a sweep's two workers, in reverse order; at the command line; from a notebook."""
    runs = [Run.named("SGD", 0.01, momentum=beta, **FIELDS) for beta in (0, 0.9, 0.5)]
    expected = {run: train(run) for run in runs}
    ways = {"twice": [train(run) for run in reversed(runs)]}
    ways["workers"] = train_all(runs[::-1], Store(tmp_path / "workers"), "cpu", workers=2)
    (tmp_path / "grid.yaml").write_text(
        f"common: {FIELDS}\nentries: [{{optimizer: SGD, wd: 0.01, momentum: [0.5, 0, 0.9]}}]".replace("'", "")
    )
    in_a_process_of_its_own(
        f"from ncutils.__main__ import main; main(['sweep', {str(tmp_path / 'grid.yaml')!r}, '--workers', '1'])",
        NCUTILS_RUNS=str(tmp_path / "command line"),
    )
    monkeypatch.setenv("NCUTILS_RUNS", str(tmp_path / "notebook"))
    chapter = papermill(
        ROOT / "chapters" / "01_neural_collapse.ipynb",
        tmp_path / "out.ipynb",
        optimizer="SGD",
        wd=0.01,
        **FIELDS,
    )
    assert chapter.returncode == 0, chapter.stderr[-1000:]
    for name in ("command line", "notebook"):
        ways[name] = Store(tmp_path / name).histories()
    assert [len(found) for found in ways.values()] == [3, 3, 3, 1]
    for history in (h for found in ways.values() for h in found):
        same(history, expected[history.run])
    count("runs compared", sum(map(len, ways.values())))


def test_two_threads_give_the_same_twice_and_elsewhere(count):
    """With the same number of threads. What another number changes is measured in the book."""
    run = Run(lr=0.05, epochs=2, width=16, n_train=256)
    first = train(run, "cpu", threads=2)
    same(train(run, "cpu", threads=2), first)
    in_a_process_of_its_own(
        "from ncutils.training import Run, train; from ncutils.store import Store\n"
        f"Store().put(train(Run.model_validate_json({run.model_dump_json()!r}), 'cpu', threads=2))"
    )
    same(Store().get(run), first)
    count("runs compared", 2)


class Interrupted(Exception):
    pass


@pytest.mark.counts("runs compared")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("times", range(20 if SOAK else 2))
def test_a_run_interrupted_at_random_epochs_is_the_run(rule, times, tmp_path, monkeypatch):
    run = Run(
        rule=rule,
        width=2,
        n_train=300,
        epochs=8,
        decoupled_wd=0.1,
        coupled_wd=0.1,
        measure="every",
        seed=times,
    )
    goes_on_to_the_same(run, random.Random(f"{rule} {times}").sample(range(1, 8), 2), tmp_path, monkeypatch)


@pytest.mark.counts("runs compared")
@pytest.mark.parametrize(
    "fields", [{}, {"arch": "vit", "net": "released", "rule": "adam"}], ids=["resnet9", "vit"]
)
@pytest.mark.parametrize("augment", ["none", "crop-flip", "crop-flip-measured"])
def test_an_augmented_run_and_one_with_dropout_interrupted_are_the_run(
    fields, augment, tmp_path, monkeypatch
):
    run = Run(width=2, n_train=300, epochs=4, lr=0.01, measure="every", augment=augment, **fields)
    goes_on_to_the_same(
        run, random.Random(f"{fields} {augment}").sample(range(1, 4), 2), tmp_path, monkeypatch
    )


@pytest.mark.counts("runs compared")
@pytest.mark.parametrize("augment", ["none", "crop-flip-measured"])
def test_a_streamed_resnet50_interrupted_is_the_run(augment, tmp_path, monkeypatch):
    make_folder(tmp_path / "small", sizes=((40, 30), (33, 50)))
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    common = {"arch": "resnet50", "width": 2, "dataset": "small", "image_size": 32, "precision": "bf16"}
    run = Run(epochs=3, batch_size=4, augment=augment, **common)
    goes_on_to_the_same(run, [random.Random(0).choice([1, 2])], tmp_path, monkeypatch)


def goes_on_to_the_same(run, epochs, folder, monkeypatch):
    """Stopped after the checkpoint of each of these epochs, each time by an exception, and begun again."""
    whole, keep, checkpoint = train(run, "cpu"), training.State.keep, folder / "state"
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    for stop in sorted(epochs):

        def keep_and_stop(state, path, stop=stop):
            keep(state, path)
            if state.epoch == stop:
                raise Interrupted

        monkeypatch.setattr(training.State, "keep", keep_and_stop)
        with pytest.raises(Interrupted):
            train(run, "cpu", checkpoint=checkpoint)
    monkeypatch.setattr(training.State, "keep", keep)
    epoch, trained = training.epoch, []
    monkeypatch.setattr(training, "epoch", lambda *a: trained.append(1) or epoch(*a))
    again = train(run, "cpu", checkpoint=checkpoint)
    assert len(trained) == run.epochs - max(epochs)
    same(again, whole)
    assert again.frame.dtypes.equals(whole.frame.dtypes)
    store = Store(folder)
    checkpoint.replace(store.checkpoint(run))
    store.put(again)  # what is stored needs no checkpoint
    assert not store.checkpoint(run).exists()
