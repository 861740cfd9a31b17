"""What stored runs cost to find and show: a store of 4,000 runs, the import of ncutils, a chapter that trains nothing."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import PAIRS, TOY, main, median_seconds, paired, row, seconds
from jupyter_client.manager import start_new_kernel

from ncutils.files import project_folder
from ncutils.store import Store, table, write
from ncutils.training import Run, train

RUNS = 40 if TOY else 4000
ROOT = project_folder(".")
MODULES = "metrics theory models optimizers data training store sweeps"


def python(code):
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def chapter(folder):
    command = [Path(sys.executable).with_name("papermill"), "chapters/03_adamw.ipynb", f"{folder}/out.ipynb"]
    command += ["-f", "params/quick/03_adamw.yaml"]
    environment = os.environ | {"NCUTILS_RUNS": folder}
    return lambda: subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)


def kernel(code=""):
    """Seconds until a kernel answers, and that `code` then takes."""

    def start():
        found.append(start_new_kernel())

    found = []
    starting = seconds(start)
    manager, client = found[0]
    running = seconds(lambda: client.execute_interactive(code, output_hook=lambda message: None))
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return starting, running


def rows():
    history = train(Run(width=2, epochs=60), "cpu", progress=False)
    runs = [
        history.run.model_copy(update={"seed": seed, "lr": 0.01 * (1 + seed % 4)}) for seed in range(RUNS)
    ]
    histories = [dataclasses.replace(history, run=run) for run in runs]
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory() as packed:
        one_file_a_run, one_file = Store(files, packed), Store(packed + "/none", packed)
        for h in histories:
            one_file_a_run.put(h)
        asked = iter(range(0, RUNS, RUNS // (4 * PAIRS)))
        for name, store in (
            (f"{RUNS:,} stored runs, a file each", one_file_a_run),
            (f"{RUNS:,} in one file", one_file),
        ):
            if store is one_file:
                write(histories, Path(packed) / "all.parquet")
            first = seconds(lambda s=store: s.histories())
            listed = median_seconds(lambda s=store: table(s.histories()))
            yield row(f"{name}: list, the first time", first, unit=" s")
            yield row(f"{name}: list as a table", listed, 1, at_most=True, unit=" s")
            kept = median_seconds(
                lambda s=store: [h for h in s.histories() if h.run.lr == 0.02 and not h.diverged]
            )
            yield row(f"{name}: filter", kept, 1, at_most=True, unit=" s")
            found = median_seconds(lambda s=store: s.get(runs[next(asked)]).frame)
            yield row(f"{name}: look up one", 1e3 * found, 5, at_most=True, unit=" ms")
    every = "; ".join(f"import ncutils.{name}" for name in MODULES.split())
    ours, theirs, _ = paired(python(f"import torch; {every}"), python("import torch"))
    yield row("import of ncutils beyond torch's own", ours - theirs, 0.3, at_most=True, unit=" s",
              against="import torch", usual=theirs, ours=ours)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        again = chapter(folder)
        again()
        whole = median_seconds(again)
    starts = [kernel("import torch") for _ in range(PAIRS)]
    starting, importing = (sorted(side)[len(starts) // 2] for side in zip(*starts))
    why = f"of which the kernel's start {starting:.2g} s and torch's import {importing:.2g} s"
    yield row("chapter 03 again, all runs stored", whole, 8, at_most=True, unit=" s", why=why)


if __name__ == "__main__":
    main(rows)
