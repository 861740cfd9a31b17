"""Grids and sweeps: counts, refusals, interruption, divergence, a Ray cluster."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from ncutils import data, sweeps
from ncutils.__main__ import main
from ncutils.book.published import GRID_LR, GRID_MOMENTUM, GRID_WD
from ncutils.optimizers import RULES, make_optimizer
from ncutils.store import Store, read_grid
from ncutils.sweeps import same_steps, seconds_a_run, train_all
from ncutils.training import Run, train
from tests.test_data import make_folder

ROOT = Path(__file__).resolve().parents[1]
SHORT = "common: {epochs: 4, width: 4, n_train: 300}\n"
GRID = SHORT + "entries:\n  - {optimizer: [Adam, AdamW], lr: 0.001, wd: [0, 0.05, 0.5]}\n"


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path / "grid.yaml"


def test_the_papers_grid():
    entries = read_grid(ROOT / "params/paper/grid.yaml")
    settings = Counter((run.arch, run.dataset, name) for name, run in entries)
    assert len(entries) == 3888 and len(settings) == 36 and set(settings.values()) == {108}
    assert len({run.hash for _, run in entries}) == 3564
    for pair in itertools.product(("resnet9", "vgg9"), ("MNIST", "FashionMNIST", "CIFAR10")):
        names = {}
        for name, run in entries:
            if (run.arch, run.dataset) == pair:
                names.setdefault(run.hash, set()).add(name)
        assert sum(len(shared) == 2 for shared in names.values()) == 54
    expected = {
        Run.released(name, wd, arch="vgg9", dataset="MNIST", width=64, lr=lr, momentum=beta, seed=3141).hash
        for name in GRID_LR
        for lr, beta, wd in itertools.product(GRID_LR[name], GRID_MOMENTUM, GRID_WD[name])
    }
    assert expected == {run.hash for _, run in entries if (run.arch, run.dataset) == ("vgg9", "MNIST")}


def test_the_released_grid():
    """Every entry is what `Run.released` makes, AdamW has one decay, and but for that and CIFAR10's augmentation it is the paper's."""
    entries = read_grid(ROOT / "params/paper/released.yaml")
    assert len(entries) == len({(name, run.hash) for name, run in entries}) == 3888 - 6 * 18 * 5
    # SGD with SGDW and Signum with SignumW share their runs at decay 0, AdamW and Adam none
    assert len({run.hash for _, run in entries}) == 3348 - 6 * 2 * 18
    assert {run.wd for name, run in entries if name == "AdamW"} == {0.01}
    wanted, text = set(), read_grid(ROOT / "params/paper/grid.yaml")
    for name, run in text:
        fields = run.model_dump(include={"arch", "width", "dataset", "lr", "momentum", "epochs", "seed"})
        wanted.add((name, Run.released(name, 0.01 if name == "AdamW" else run.wd, **fields).hash))
    assert wanted == {(name, run.hash) for name, run in entries}
    augmented = {run.dataset for _, run in entries if run.augment != "none"}
    assert augmented == {"CIFAR10"} and all(run.augment == "none" for _, run in text)


def test_runs_that_differ_in_mathematics_alone_are_counted():
    """By hand: without momentum the pairs of SGD and SGDW, at each learning rate and positive decay, are one more run in two."""
    entries = {
        profile: read_grid(ROOT / f"params/{profile}/grid.yaml") for profile in ("paper", "laptop", "quick")
    }
    counts = {
        profile: (len({run.hash for _, run in of}), len({same_steps(run).hash for _, run in of}))
        for profile, of in entries.items()
    }
    assert counts["paper"] == (3564, 3564 - 6 * 3 * 5) == (3564, 3474)
    assert counts["laptop"] == (579, 579 - 5)  # ResNet9 on FashionMNIST alone has momentum 0, at one rate
    assert counts["quick"] == (69, 69)  # SGD alone has


@pytest.mark.parametrize(
    ("rule", "momentum", "both", "same"),
    [
        ("sgd", 0, False, True),
        ("sgd", 0.5, False, False),
        ("signum", 0, False, False),
        ("sgd", 0, True, False),
    ],
)
def test_same_steps_are_the_same_steps(rule, momentum, both, same):
    """In float64, with the gradient of a small softmax regression and a learning rate that changes."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator, dtype=torch.float64), torch.arange(40) % 5
    start = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    split = {"coupled_wd": 0.1, "decoupled_wd": 0.2} if both else {"decoupled_wd": 0.3}
    ends = []
    for decays in (split, {"coupled_wd": 0.3}):
        w = start.clone().requires_grad_()
        optimizer = make_optimizer([w], rule, lr=0.2, momentum=momentum, **decays)
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 0.2 / (1 + step // 40)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(x @ w.T, y).backward()
            optimizer.step()
        ends.append(w.detach())
    runs = [Run(rule=rule, momentum=momentum, **decays) for decays in (split, {"coupled_wd": 0.3})]
    assert torch.allclose(*ends, rtol=1e-12, atol=1e-13) == same
    assert (same_steps(runs[0]) == same_steps(runs[1])) == same and runs[0].hash != runs[1].hash


def test_the_cost_of_a_run_is_timed_on_images_of_its_size(monkeypatch):
    """A gradient on as many as take a moment, scaled to the run's batch; an update where it is not small beside that."""
    timed = []

    def seconds(call, device):
        before = len(timed)
        call()
        return 1.0 if len(timed) > before else 0.25

    monkeypatch.setattr(sweeps.Step, "gradient", lambda _, images, labels: timed.append(images.shape))
    monkeypatch.setattr(sweeps, "_seconds", seconds)
    monkeypatch.setattr(sweeps, "_gradients", {})
    monkeypatch.setattr(sweeps, "_updates", {})
    fields = {"width": 2, "rule": "adam", "epochs": 1}
    # 128 of them at once would take 100 MB at the least width
    large = Run(**fields, image_size=512, n_train=300)
    all_at_once = Run(**fields, arch="mlp", batch_size=2**31)
    wide = Run(**fields | {"width": 64}, dataset="MNIST", n_train=128)
    elsewhere = Run(**fields, dataset="a folder that is not here yet", n_train=300)
    other_rules = Run(**fields | {"rule": "signum"}), Run(**fields | {"rule": "lion"})
    runs = [Run(**fields), large, all_at_once, wide, elsewhere, *other_rules]
    costs = seconds_a_run(runs, "cpu")
    assert timed == [(128, 1, 8, 8), (2, 1, 512, 512), (1437, 1, 8, 8), (8, 1, 32, 32), (128, 3, 32, 32)]
    steps = [12, 3, 1, 1, 3, 12, 12]
    of_128 = [1, 64, 1, 16, 1, 1, 1]  # batches of the timed size in one of the run's
    updates = [0, 0, 0.25, 0, 0, 0, 0.25]
    expected = [1.1 * n * (share + update) for n, share, update in zip(steps, of_128, updates)]
    assert [costs[run] for run in runs] == pytest.approx(expected)


def test_the_laptop_grid_has_all_settings():
    entries = read_grid(ROOT / "params/laptop/grid.yaml")
    assert len(entries) == 642 and len({run.hash for _, run in entries}) == 579
    main_runs = {
        r.hash: (r.arch, r.dataset)
        for _, r in entries
        if (r.momentum, r.seed) == (0.9, 0) and r.lr not in (0.001, 0.01)
    }
    assert len(main_runs) == 198 and set(Counter(main_runs.values()).values()) == {33}


def test_a_worker_takes_over_what_a_notebook_added_and_keeps_what_it_has(monkeypatch):
    """Unpickled, a partial is another object: a data set at hand would be read anew for each run."""
    assert sweeps._known() == ({}, {})
    before = data.SOURCES["digits3"]
    loaded = data.load("digits3")
    monkeypatch.setitem(RULES, "halved", RULES["sgd"])
    monkeypatch.setitem(data.SOURCES, "more", (lambda: data._digits(3), None))
    known = sweeps._known()
    assert [*known[0]] == ["halved"] and [*known[1]] == ["more"]
    monkeypatch.setitem(RULES, "sgd", RULES["signum"])  # what an earlier sweep's notebook had changed
    monkeypatch.delitem(RULES, "halved")
    sweeps._learn(known)
    assert RULES["halved"] is RULES["sgd"] is not RULES["signum"] and "more" in data.SOURCES
    assert data.SOURCES["digits3"] is before and data.load("digits3") is loaded


def test_the_estimate_takes_no_more_workers_than_there_are_runs(monkeypatch):
    monkeypatch.setattr(sweeps, "_seconds_a_step", lambda *_: 1.0)
    run = Run(n_train=1280, epochs=10)  # 100 steps, and a tenth for measuring
    said = sweeps.plan([("SGD", run)], [run], "cpu", 16)
    assert "1 to train: 110 s of one worker, 110 s with 1," in said


def test_dry_run_counts_and_trains_nothing(capsys):
    assert main(["sweep", str(ROOT / "params/quick/grid.yaml"), "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("75 runs, 69 distinct, 0 stored\n69 differ in mathematics ")
    assert "69 to train: " in printed
    assert not Store().histories()


def test_dry_run_of_the_papers_grid_needs_no_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr("ncutils.sweeps._seconds_a_step", lambda run, device: 1.0)  # width 64 takes its time
    assert main(["sweep", str(ROOT / "params/paper/grid.yaml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("3888 runs, 3564 distinct, 0 stored\n3474 differ in mathematics ")
    assert " days" in printed


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("entries: [", "is not YAML"),
        ("runs: []", "must be a mapping with 'entries'"),
        ("entries: {lr: 0.1}", "'entries' a list of such mappings"),
        ("entries: [{optimizer: Adam, lr: 0.1}]", "'wd' is missing in an entry"),
        ("entries: [{optimizer: Adam, wd: 0, lrr: 0.1}]", "unknown parameter 'lrr': did you mean 'lr'?"),
        ("entries: [{optimizer: Adma, wd: 0}]", "optimizer = 'Adma' is not allowed"),
        ("entries: [{optimizer: Adam, wd: [0, -1]}]", "wd = -1 is not allowed"),
        ("entries: [{optimizer: Adam, wd: 0, momentum: high}]", "momentum = 'high' is not allowed"),
        ("entries: [{optimizer: Adam, wd: 0, epochs: 1:30}]", "epochs = '1:30' is not allowed"),
    ],
)
def test_bad_grids_are_refused_in_one_sentence(text, sentence, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["sweep", str(tmp_path / "grid.yaml")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml' is not a file" in capsys.readouterr().err


def test_a_whole_number_is_decimal(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "entries: [{optimizer: Adam, wd: 1_0, epochs: 010, seed: [0, 007, 12]}]"
    )
    runs = [run for _, run in read_grid(tmp_path / "grid.yaml")]
    assert [(run.epochs, run.wd, run.seed) for run in runs] == [(10, 10, seed) for seed in (0, 7, 12)]


def test_a_sweep_trains_once(grid, capsys):
    assert main(["sweep", str(grid), "--workers", "1"]) == 0
    assert "6 runs, 5 distinct, 0 stored\n5 more stored in" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in Store().folder.glob("*.parquet")}
    assert main(["sweep", str(grid)]) == 0
    assert "6 runs, 5 distinct, 5 stored\n0 more stored in" in capsys.readouterr().out
    assert written == {path: path.stat().st_mtime_ns for path in Store().folder.glob("*.parquet")}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_stopped_half_way_goes_on(how, tmp_path, capsys):
    """Finished runs are kept, and the second call trains only what is missing. `kill` reaches the sweep alone, which takes its
    workers along."""
    (tmp_path / "grid.yaml").write_text(
        GRID.replace("epochs: 4", "epochs: 10").replace("0.5]", "0.1, 0.2, 0.5, 1]")
    )
    command = [sys.executable, "-m", "ncutils", "sweep", "grid.yaml", "--workers", "2"]
    sweep = subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a shell's background job ignores it
    )
    deadline = time.time() + 300
    while len(Store().histories()) < 2 and sweep.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    assert len(Store().histories()) >= 2
    workers = psutil.Process(sweep.pid).children(recursive=True)
    (os.kill if how == signal.SIGTERM else os.killpg)(sweep.pid, how)
    _, error = sweep.communicate(timeout=300)
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=60)[1]
    kept = {h.run: h.info["finished"] for h in Store().histories()}
    assert 2 <= len(kept) < 11
    if how != signal.SIGKILL:
        assert sweep.returncode == 130
        assert (
            f"stopped: {len(kept)} of 11 runs are done and stored; the same command goes on" in error.decode()
        )
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--workers", "1"]) == 0
    assert f"{11 - len(kept)} more stored in" in capsys.readouterr().out
    again = {h.run: h.info["finished"] for h in Store().histories()}
    assert len(again) == 11 and all(again[run] == finished for run, finished in kept.items())
    assert not [f for f in os.listdir(os.environ["NCUTILS_RUNS"]) if f.endswith(".tmp")]


def test_a_sweep_reads_the_data_folder_of_now(tmp_path, monkeypatch):
    """Worker processes outlive a sweep; the next one may come with another NCUTILS_DATA."""
    for number in range(2):
        make_folder(tmp_path / str(number) / "small", classes=("a", "b", "c", "d")[: 2 + 2 * number])
        monkeypatch.setenv("NCUTILS_DATA", str(tmp_path / str(number)))
        runs = [Run(dataset="small", epochs=1, width=2, batch_size=4, seed=2 * number + i) for i in range(2)]
        assert [h.info["n_classes"] for h in train_all(runs, device="cpu", workers=2)] == [2 + 2 * number] * 2


def test_diverged_runs_are_kept_and_counted(tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(
        SHORT + "entries: [{arch: mlp, optimizer: SGD, lr: [0.05, 1.0e+12], wd: 0}]"
    )
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--workers", "1"]) == 0
    assert "of all 2, 1 diverged" in capsys.readouterr().out
    assert [h.info["diverged_epoch"] for h in Store().histories() if h.diverged] == [1]


def test_a_failing_run_does_not_end_the_others(capsys):
    good, bad = Run(epochs=2, width=2, n_train=300), Run(epochs=2, width=2, n_train=257)  # 257 = 2 x 128 + 1
    with pytest.raises(ValueError, match="batch_size = 128 is not allowed with 257 training images"):
        train_all([bad, good], workers=1)
    assert [h.run for h in Store().histories()] == [good]


def test_a_ray_cluster_of_two_nodes_gives_what_one_machine_gives(grid, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
    from ray.cluster_utils import Cluster

    runs = [run for _, run in read_grid(grid)]
    local = train_all(runs, Store(tmp_path / "local"), device="cpu", workers=1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        remote = train_all(runs, Store(tmp_path / "remote"), device="cpu", ray=cluster.address)
    finally:
        cluster.shutdown()
    assert len(Store(tmp_path / "remote").histories()) == 5
    for here, there in zip(local, remote):
        assert here.run == there.run
        pd.testing.assert_frame_equal(here.frame.drop(columns="gram"), there.frame.drop(columns="gram"))
    assert len({h.info["node"] for h in remote}) == 2


def test_workers_know_the_rules_and_data_sets_that_a_notebook_has_added(monkeypatch):
    monkeypatch.setitem(RULES, "halved", lambda params, lr, *_: torch.optim.SGD(params, lr / 2))
    monkeypatch.setitem(data.SOURCES, "more-digits", data.SOURCES["digits"])
    fields = {"arch": "mlp", "width": 1, "epochs": 2, "lr": 0.1, "momentum": 0}
    runs = [Run(rule="halved", **fields), Run(rule="sgd", dataset="more-digits", **fields)]
    found = train_all(runs, device="cpu", workers=2)
    assert [h.final["train_loss"] for h in found] == [
        train(run, "cpu", progress=False).final["train_loss"] for run in runs
    ]
    half = train(Run(rule="sgd", **fields | {"lr": 0.05}), "cpu", progress=False)
    assert found[0].final["train_loss"] == half.final["train_loss"]  # under a schedule, too


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_workers_are_counted(workers):
    with pytest.raises(
        ValueError, match=f"workers = {workers!r} is not allowed: it must be a whole number, 1 or more"
    ):
        train_all([], workers=workers)
