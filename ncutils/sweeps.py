"""Many runs: what is stored is read, what is missing is trained, side by side."""

from __future__ import annotations

import os

import torch
from joblib import Parallel, delayed

from ncutils import data
from ncutils.store import Store
from ncutils.training import History, Run, pick_device, progress_bar, train


def train_all(
    runs: list[Run],
    store: Store | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[History]:
    """The Histories of `runs`, in their order: each distinct Run is trained at most once, then stored.

    On a CPU, `workers` processes (default: one a core) train one run each: narrow networks gain more from neighbours
    than from threads. On a GPU the default is one. Stored runs stay stored if a later one fails; whatever a run raises
    is raised here.
    """
    store = store or Store()
    found = {run.hash: store.get(run) for run in runs}
    missing = list({run.hash: run for run in runs if found[run.hash] is None}.values())
    if missing:
        for name in sorted({run.dataset for run in missing}):
            data.splits(name)  # a download, or its failure, comes before any worker starts
        workers = min(workers or (1 if pick_device(device).type != "cpu" else usable_cores()), len(missing))
        with progress_bar(len(missing), "training", "run", progress and len(missing) > 1) as bar:
            for history in _trained(missing, device, workers, progress):
                store.put(history)
                found[history.run.hash] = history
                bar.update()
    return [found[run.hash] for run in runs]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _trained(runs, device, workers, progress):
    if workers == 1:
        yield from (train(run, device, progress=progress and len(runs) == 1) for run in runs)
        return
    threads = max(1, usable_cores() // workers)
    # loky: workers need no __main__ guard, so that notebooks and scripts can use them, and a killed one is reported
    pool = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
    yield from pool(delayed(_train_in_worker)(run, device, threads) for run in runs)


def _train_in_worker(run: Run, device: str | None, threads: int) -> History:
    torch.set_num_threads(threads)  # what a wide network's default is
    return train(run, device, progress=False)
