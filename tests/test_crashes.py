"""Killed, starved of disk, shut out, at odds with a neighbour: nothing stored is lost, nothing half-written is read.

Most kills fall on children of one process that has everything imported, so that twenty of them cost seconds, not minutes.
"""

import contextlib
import io
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from ncutils import store as stores
from ncutils import sweeps, training
from ncutils.__main__ import main
from ncutils.files import write_whole
from ncutils.store import Store, read_grid
from ncutils.sweeps import train_all
from ncutils.training import Run, train
from tests.conftest import SOAK

ROOT = Path(__file__).resolve().parents[1]
KILLS = 200 if SOAK else 20
GRID = """
common: {arch: mlp, width: 2, n_train: 600, epochs: 25, batch_size: 32}
entries:
  - {optimizer: [SGD, AdamW, SignumW], lr: 0.01, wd: [0.01, 0.1], seed: [0, 1, 2]}
"""
# A child of this process trains the grid, keeps a checkpoint of every epoch, and notes each run that it begins.
NURSERY = """
import os, sys, threading, warnings
from tqdm import tqdm
from ncutils import sweeps, training
from ncutils.store import Store, read_grid
warnings.simplefilter("error")  # nothing may have to be set aside
training.CHECKPOINT_SECONDS = 0
tqdm.set_lock(threading.RLock())  # its own is one for all forked children: a child killed with it would stop the others
runs, train = [run for _, run in read_grid("grid.yaml")], sweeps.train
train(runs[0].model_copy(update={"epochs": 1}), "cpu")  # imports what is imported late

def noted(run, *options):
    with open("begun", "a") as log:
        log.write(f"{os.getpid()} {run.hash}\\n")
    return train(run, *options)

sweeps.train = noted
for _ in sys.stdin:
    child = os.fork()
    if not child:
        try:
            sweeps.train_all(runs, Store(shipped="none"), "cpu", workers=1, progress=False)
            os._exit(0)
        except BaseException as error:
            print(type(error), error, file=sys.stderr, flush=True)
            os._exit(1)
    print(child, flush=True)
"""


class Nursery:
    """Children that train the same grid on the same store."""

    def __init__(self, folder):
        (folder / "grid.yaml").write_text(GRID)
        self.folder, self.runs = folder, [run for _, run in read_grid(folder / "grid.yaml")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], cwd=folder, env=environment, text=True, stdin=-1, stdout=-1
        )

    def child(self) -> psutil.Process:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return psutil.Process(int(self.process.stdout.readline()))

    def begun(self) -> list[tuple[str, str]]:
        return [tuple(line.split()) for line in (self.folder / "begun").read_text("utf-8").splitlines()]


@pytest.fixture
def nursery(tmp_path):
    nursery = Nursery(tmp_path)
    yield nursery
    nursery.process.kill()
    nursery.process.wait()


def ended(child: psutil.Process) -> bool:
    return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def stored_files() -> dict:
    """Each History of the folder by its file's name. Raises where one is not whole."""
    files = Store().folder.glob("*.parquet")
    return {path.stem: stores.read(path)[path.stem] for path in files}


def same(a, b):
    pd.testing.assert_frame_equal(
        a.frame.drop(columns="gram"), b.frame.drop(columns="gram"), check_exact=True
    )
    assert np.array_equal(a.grams, b.grams) and a.run == b.run


def wait_until(condition, seconds=300):
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_sweep_killed_at_random_moments_loses_nothing(nursery, count):
    """Every kill -9 leaves whole files only; what was stored stays as it was; in the end all is as if nobody had killed."""
    moments, killed, kept, checkpoints = random.Random(0), 0, {}, 0
    while killed < KILLS:
        child = nursery.child()
        time.sleep(moments.uniform(0.02, 0.5))
        finished = ended(child)
        child.kill()
        wait_until(lambda child=child: ended(child))
        files = stored_files()
        assert {name: files[name].info["finished"] for name in kept} == kept
        kept = {name: history.info["finished"] for name, history in files.items()}
        for path in Store().folder.glob("*.checkpoint"):
            assert torch.load(path, weights_only=True)["run"] == path.stem
            checkpoints += 1
        assert not list(Store().folder.glob("*.unreadable"))
        killed += not finished
        if finished:  # a fast machine starts over
            assert len(kept) == len(nursery.runs)
            for path in Store().folder.iterdir():
                path.unlink()
            kept = {}
    last = nursery.child()
    wait_until(lambda: ended(last))
    assert sorted(stored_files()) == sorted(run.hash for run in nursery.runs)
    assert checkpoints > KILLS / 4 and not [
        p.name for p in Store().folder.iterdir() if p.suffix != ".parquet"
    ]
    for history in Store().histories():
        same(history, train(history.run))
    count("crashes survived", killed)
    count("runs compared", len(nursery.runs))


def test_sweeps_side_by_side_share_the_work(nursery, count):
    """Three sweeps on one store, one of them killed: each run is begun once, but for the one that was lost."""
    children = [nursery.child() for _ in range(3)]
    wait_until(lambda: (nursery.folder / "begun").exists() and len(nursery.begun()) >= 5)
    children[0].kill()
    wait_until(lambda: all(map(ended, children)))
    assert sorted(stored_files()) == sorted(run.hash for run in nursery.runs)
    times = Counter(name for _, name in nursery.begun())
    assert set(times) == set(stored_files()) and sum(times.values()) <= len(times) + 1
    assert len({pid for pid, _ in nursery.begun()}) == 3  # they did share it
    count("crashes survived")


def test_a_killed_worker_ends_the_sweep_with_a_sentence_and_the_next_goes_on(tmp_path, count):
    (tmp_path / "grid.yaml").write_text(GRID.replace("epochs: 25", "epochs: 40"))
    command = [sys.executable, "-m", "ncutils", "sweep", "grid.yaml", "--workers", "2", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    sweep = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True)
    wait_until(lambda: list(Store().folder.glob("*.parquet")))
    workers = [p for p in psutil.Process(sweep.pid).children() if "LokyProcess" in " ".join(p.cmdline())]
    workers[0].kill()
    _, error = sweep.communicate(timeout=300)
    assert sweep.returncode == 2 and "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("ncutils: a worker process was killed")]
    kept = {name: history.info["finished"] for name, history in stored_files().items()}
    assert 1 <= len(kept) < 18
    histories = train_all([run for _, run in read_grid(tmp_path / "grid.yaml")], device="cpu", workers=1)
    assert (
        len(histories) == 18
        and {n: h.info["finished"] for n, h in stored_files().items() if n in kept} == kept
    )
    count("crashes survived")


def test_a_lost_ray_node_loses_no_run_and_a_checkpoint_is_used(tmp_path, monkeypatch, count):
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
    from ray.cluster_utils import Cluster

    (tmp_path / "grid.yaml").write_text(GRID.replace("epochs: 25", "epochs: 60"))
    runs = [run for _, run in read_grid(tmp_path / "grid.yaml")]
    checkpoint = Store().checkpoint(runs[-1])
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0)
        train(runs[-1], checkpoint=checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    epoch, rows, grams, _, measuring = state["progress"]
    torch.save(
        state | {"progress": (epoch, rows, grams, 10_000.0, measuring)}, checkpoint
    )  # seconds spent: whose it is
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)

        def lose_the_node():
            wait_until(lambda: len(list(Store().folder.glob("*.parquet"))) >= 2)
            cluster.remove_node(node, allow_graceful=False)

        with ThreadPoolExecutor() as pool:
            thief = pool.submit(lose_the_node)
            histories = train_all(runs, device="cpu", ray=cluster.address)
            thief.result()  # raises where no node was lost
    finally:
        cluster.shutdown()
    assert [h.run for h in histories] == runs and sorted(stored_files()) == sorted(run.hash for run in runs)
    for i in (0, -1):
        same(histories[i], train(runs[i]))
    assert histories[-1].info["wall_s"] > 10_000 and not checkpoint.exists()
    count("crashes survived")


@contextlib.contextmanager
def a_node_of_its_own_disk(address, hidden):
    """A node of a Ray cluster that sees an empty disk in the place of the folder `hidden`; killed at the end."""
    start = f"{sys.executable} -m ray.scripts.scripts start --address {address} --num-cpus 1 --block"
    command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs {hidden} && exec {start}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        started = psutil.Process(process.pid)
        for one in [*started.children(recursive=True), started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def test_nodes_without_a_shared_disk_send_results_and_checkpoints_home(tmp_path, monkeypatch, count):
    """The head has no room for runs. One node trains, and is lost; another, which joins late, goes on from the head's copy."""
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system for a process of its own")
    from ray.cluster_utils import Cluster

    def as_if_long_trained(path, content):
        """10,000 s more on a checkpoint that comes home, by which the run that went on from it is known."""
        state = torch.load(io.BytesIO(content), weights_only=True)
        epoch, rows, grams, seconds, measuring = state["progress"]
        epochs.append(epoch)
        changed = io.BytesIO()
        torch.save(state | {"progress": (epoch, rows, grams, 10_000 + seconds, measuring)}, changed)
        write_whole(path, changed.getvalue())

    epochs: list[int] = []
    monkeypatch.setattr(sweeps, "write_whole", as_if_long_trained)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.3)
    runs = [Run(width=2, n_train=300, epochs=e, measure="ends", rule="adam") for e in (400, 2)]
    checkpoint = Store().checkpoint(runs[0])
    checkpoint.parent.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        with ThreadPoolExecutor() as pool:
            with a_node_of_its_own_disk(cluster.address, checkpoint.parent):
                sweep = pool.submit(train_all, runs, device="cpu", ray=cluster.address)
                wait_until(lambda: checkpoint.exists() or sweep.done())
                assert not sweep.done(), sweep.result()
            with a_node_of_its_own_disk(cluster.address, checkpoint.parent):
                histories = sweep.result(timeout=300)
    finally:
        cluster.shutdown()
    assert [h.run for h in histories] == runs and sorted(stored_files()) == sorted(run.hash for run in runs)
    assert 0 < min(epochs) < 400 and histories[0].info["wall_s"] > 10_000 and not checkpoint.exists()
    for run, history in zip(runs, histories):
        same(history, train(run))
    assert len({h.info["node"] for h in histories}) == 1  # the late one's
    count("crashes survived")


@pytest.mark.counts("bad inputs refused")
def test_another_version_of_ray_is_told_in_one_sentence(tmp_path):
    """As where one machine of a cluster was updated alone."""
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
    from ray.cluster_utils import Cluster

    grid = tmp_path / "grid.yaml"
    grid.write_text("entries: [{optimizer: Adam, wd: 0, epochs: 1, width: 2, n_train: 40}]", encoding="utf-8")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    address = cluster.address  # forgotten at its end
    code = f"""
import ray
from ncutils.__main__ import main
from ncutils.files import write_whole
sweep, here = ["sweep", {str(grid)!r}, "--device", "cpu", "--ray", {address!r}], ray.__version__
ray.__version__ = "2.0.0"
print(main(sweep))
ray.__version__ = here
print(main(sweep))
"""
    try:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        cluster.shutdown()
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("ncutils: ")]
    assert error.startswith(f"ncutils: ray = {address!r} cannot be joined: ") and "2.0.0" in error
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["2", "0"], done.stderr


def test_a_node_with_another_torch_is_told():
    history = train(Run(width=1, arch="mlp", epochs=1, n_train=40), "cpu")
    sweeps._told_of_versions(history)  # a build for another device is the same version
    history.info["torch"] = torch.__version__.partition("+")[0] + "+cpu"
    sweeps._told_of_versions(history)
    history.info["torch"] = "1.0"
    with pytest.warns(UserWarning, match="a node has torch 1.0, this machine"):
        sweeps._told_of_versions(history)


@pytest.mark.parametrize(
    ("resources", "gpus", "runs"),
    [
        ({"CPU": 8.0}, 0, 16),
        ({"CPU": 64.0, "GPU": 4.0}, 0.5, 16),
        ({"CPU": 9e3}, 0, 500),
        ({"CPU": 8.0}, 1.0, 2),
        ({}, 0, 2),
    ],
)
def test_a_cluster_is_handed_twice_what_it_has_room_for(resources, gpus, runs):
    assert sweeps._in_flight(resources, gpus) == runs


def small_runs(n, **fields):
    return [
        Run(arch="mlp", width=2, n_train=100, epochs=20, measure="every", seed=seed, **fields)
        for seed in range(n)
    ]


def test_a_full_disk_costs_no_run(mounted, monkeypatch, capsys):
    disk, runs = mounted("-o", "size=192k"), small_runs(20)
    monkeypatch.setenv("NCUTILS_RUNS", str(disk))
    with pytest.raises(OSError, match=rf"{disk}.* cannot be written: No space left on device$"):
        train_all(runs, workers=1)
    kept = {name: history.info["finished"] for name, history in stored_files().items()}
    assert 1 <= len(kept) < 20 and not list(disk.glob(".*.tmp"))
    (disk.parent / "grid.yaml").write_text(
        "entries: [{arch: mlp, width: 2, n_train: 100, epochs: 20, measure: every, optimizer: SGD, wd: 0, seed: 19}]"
    )
    assert main(["sweep", str(disk.parent / "grid.yaml"), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ncutils: ") and "No space left on device" in error and error.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    assert len(train_all(runs, workers=1)) == 20
    assert {
        name: history.info["finished"] for name, history in stored_files().items() if name in kept
    } == kept


def test_a_checkpoint_that_finds_no_room_does_not_end_the_run(mounted, monkeypatch):
    disk, (run,) = mounted("-o", "size=16k"), small_runs(1)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    with pytest.warns(
        UserWarning, match="training goes on without a new checkpoint: .* No space left on device$"
    ):
        history = train(run, checkpoint=disk / "state")
    same(history, train(run))
    assert not list(disk.iterdir())


def test_a_read_only_folder_is_read_and_refused_before_training(mounted, monkeypatch):
    disk, (stored, damaged, missing) = mounted("-o", "size=1m"), small_runs(3)
    monkeypatch.setenv("NCUTILS_RUNS", str(disk))
    train_all([stored, damaged], workers=1)
    (disk / f"{damaged.hash}.parquet").write_bytes(b"PAR1")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.setattr(sweeps, "train", None)  # whoever trains now fails
    assert train_all([stored])[0].run == stored
    with pytest.raises(OSError, match=f"^{disk} cannot be written: Read-only file system; set NCUTILS_RUNS"):
        train_all([missing], workers=1)
    with pytest.warns(UserWarning, match=f"{damaged.hash}.parquet is left out: it is not whole"):
        assert Store().get(damaged) is None
    with pytest.raises(OSError, match="parquet cannot be written: Read-only file system$"):
        Store().put(Store().get(stored))


def test_what_a_killed_process_left_is_cleared_away():
    """A claim whose holder is gone is free; its temporary file goes."""
    (run,), folder = small_runs(1), Store().folder
    folder.mkdir()
    (folder / f".{run.hash}.parquet.12345.tmp").write_bytes(b"half")
    (folder / f".{run.hash}.lock").touch()
    train_all([run], workers=1)
    assert [p.name for p in folder.iterdir()] == [f"{run.hash}.parquet"]


def test_what_a_process_killed_after_it_had_stored_left_is_cleared_away(monkeypatch):
    """The checkpoint and the claim of a stored run go with the next sweep, unless somebody holds the claim."""
    (run,), folder = small_runs(1), Store().folder
    train_all([run], workers=1)
    monkeypatch.setattr(sweeps, "train", None)  # nothing is trained anew
    for left in (
        [f".{run.hash}.lock"],
        [f"{run.hash}.checkpoint"],
        [f".{run.hash}.lock", f"{run.hash}.checkpoint"],
    ):
        for name in left:
            (folder / name).touch()
        train_all([run], workers=1)
        assert [p.name for p in folder.iterdir()] == [f"{run.hash}.parquet"]
    with Store().claim(run):
        (folder / f"{run.hash}.checkpoint").touch()
        train_all([run], workers=1)
        assert (folder / f"{run.hash}.checkpoint").exists()


def test_a_claimed_run_is_passed_over_then_read():
    """While another process holds the claim of the first run, the second is trained; then the first is read."""
    first, second = small_runs(2)
    code = f"""
import sys, time
from ncutils.store import Store
from ncutils.training import Run, train
run = Run.model_validate_json({first.model_dump_json()!r})
with Store().claim(run):
    print("claimed", flush=True)
    sys.stdin.readline()
    Store().put(train(run))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1, text=True)
    assert holder.stdout.readline() == "claimed\n"
    result = {}
    sweep = threading.Thread(target=lambda: result.update(found=train_all([first, second], workers=1)))
    sweep.start()
    wait_until(lambda: Store().folder.joinpath(f"{second.hash}.parquet").exists())
    assert sweep.is_alive() and not Store().folder.joinpath(f"{first.hash}.parquet").exists()
    holder.communicate("\n", timeout=300)
    sweep.join(300)
    assert not sweep.is_alive()
    assert [h.run for h in result["found"]] == [first, second]
    assert holder.returncode == 0


# ---- checkpoints


@pytest.mark.counts("damaged files set aside")
@pytest.mark.parametrize(
    "how", ["empty", "half", "text", "another run's", "a pickle of code", "an older one's"]
)
def test_a_checkpoint_that_cannot_be_used_is_named_and_the_run_starts_anew(how, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    run, other = small_runs(2)
    path, expected = tmp_path / "state", train(run, checkpoint=tmp_path / "state")
    if how in ("empty", "half"):
        path.write_bytes(path.read_bytes()[: {"empty": 0, "half": 3000}[how]])
    elif how == "text":
        path.write_text("not a checkpoint")
    elif how == "another run's":
        path.unlink()
        train(other, checkpoint=path)
    elif how == "a pickle of code":
        torch.save(Bomb(tmp_path / "exploded"), path)
    else:
        torch.save(({}, {}, None, (1, [{"gram": np.zeros(3)}], 0.0, 0.0)), path)
    with pytest.warns(
        UserWarning, match="state is set aside as state.unreadable: it is not a whole checkpoint"
    ):
        same(train(run, checkpoint=path), expected)
    assert not (tmp_path / "exploded").exists()


class Bomb:
    """What a stranger's pickle does when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_full_memory_is_not_the_checkpoints_fault(tmp_path, monkeypatch):
    """Torch's allocator has a RuntimeError of its own for it."""
    run, path = Run(epochs=2, width=2, n_train=40, n_test=10, measure="ends"), tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0)
        train(run, checkpoint=path, progress=False)
    content = path.read_bytes()

    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MemoryError, match="^the machine's memory is full"):
        train(run, checkpoint=path, progress=False)
    assert path.read_bytes() == content and [*tmp_path.iterdir()] == [path]
