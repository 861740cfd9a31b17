"""What a sweep over a Ray cluster costs its head, per run: its processor time and the store's bytes, with runs that sleep.

From these, what 10,000 runs on 100 GPUs take of the machine that started them. A run's History is a real one of 200 epochs.
"""

import os
import tempfile
import time
from pathlib import Path

from common import TOY, main, row
from ray.cluster_utils import Cluster

from ncutils import sweeps
from ncutils.runs import History
from ncutils.store import Store
from ncutils.training import Run, train

RUNS, SLEEP, AT_ONCE = (4, 0.01, 2) if TOY else (1000, 0.05, 16)
PLANNED = 10_000


def rows():
    runs = [Run(seed=seed) for seed in range(RUNS)]
    found = train(Run(width=2, arch="mlp", epochs=200, n_train=40), "cpu")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": AT_ONCE, "include_dashboard": False})
    sweeps._train_on_node = lambda run, *_: (time.sleep(SLEEP), History(run, found.frame, found.info))[1]
    try:
        with tempfile.TemporaryDirectory() as folder:
            store, start, begun = Store(folder, folder), time.perf_counter(), os.times()
            sweeps.train_all(runs, store, "cpu", ray=cluster.address, progress=False)
            wall, ended = time.perf_counter() - start, os.times()
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            listed = time.perf_counter()
            assert len(store.histories()) == RUNS
            listed = time.perf_counter() - listed
    finally:
        cluster.shutdown()
    processor = (ended.user - begun.user + ended.system - begun.system) / RUNS
    yield row("cluster: the head process, a run", 1e3 * processor, unit=" ms of processor time")
    yield row("cluster: runs an hour through one head", 3600 * RUNS / wall, unit="")
    yield row(
        f"cluster: {PLANNED:,} runs, the head process",
        PLANNED * processor / 60,
        unit=" minutes of processor time",
    )
    yield row(f"cluster: {PLANNED:,} runs, the store", PLANNED * size / RUNS / 1e6, unit=" MB")
    yield row(f"cluster: {PLANNED:,} runs listed", PLANNED * listed / RUNS, unit=" s")
    why = f"{sweeps.CLAIMS} at most"
    yield row(
        "cluster: runs in flight with 100 GPUs, four runs each",
        sweeps._in_flight({"GPU": 100}, 0.25),
        why=why,
    )


if __name__ == "__main__":
    main(rows)
