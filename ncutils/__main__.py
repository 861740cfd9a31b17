"""`python -m ncutils sweep GRID.yaml` trains a grid, `runs` prints what is stored, `pack` copies stored runs into one file,
`scoreboard` writes what the paper says and what is seen here into the first pages."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import pandas as pd

from ncutils import sweeps
from ncutils.files import project_folder
from ncutils.machine import device_name, pick_device
from ncutils.runs import Run
from ncutils.store import Store, table, write

SHOWN = [
    "run",
    "optimizer",
    "arch",
    "width",
    "dataset",
    "n_train",
    "lr",
    "momentum",
    "coupled_wd",
    "decoupled_wd",
]
SHOWN += ["epochs", "seed", "train_acc", "test_acc", "nc0", "nc1", "nc2", "nc3", "valid", "wall_s"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ncutils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="train what a grid file names and the store lacks")
    sweep.add_argument("grid", type=Path, help="for example params/paper/grid.yaml")
    sweep.add_argument("--dry-run", action="store_true", help="count and estimate, train nothing")
    sweep.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    where = sweep.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, help="processes on this machine (default: one a core, one on a GPU)"
    )
    where.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster: 'auto', or the head node's address")
    sweep.add_argument(
        "--gpus-per-run", type=float, default=1.0, help="share of a GPU that a run takes, with --ray"
    )
    runs = commands.add_parser("runs", help="one line a stored run: its fields and its final row")
    runs.add_argument("--csv", action="store_true", help="all columns, as CSV")
    pack = commands.add_parser("pack", help="copy stored runs into one Parquet file")
    pack.add_argument("file", type=Path, help="for example results/03_adamw_FashionMNIST.parquet")
    pack.add_argument(
        "--made-by", metavar="COMMAND", help="what trained the runs: for manifest.csv beside the file"
    )
    pack.add_argument(
        "--commit", help="the code's commit that trained them, for the manifest (default: the present one)"
    )
    commands.add_parser(
        "scoreboard", help="write the scoreboard into README.md and intro.md, from the stored results"
    )
    for command in (runs, pack):
        command.add_argument(
            "--where",
            nargs="*",
            default=[],
            metavar="FIELD=VALUE",
            help="only runs with, say, dataset=digits epochs=200",
        )
    options = parser.parse_args(arguments)
    try:
        if options.command == "sweep":
            return _sweep(options)
        if options.command == "scoreboard":
            from ncutils.book import scoreboard  # imports the figures' libraries, which training does without

            for page in ("README.md", "intro.md"):
                scoreboard.write(project_folder(page))
            return 0
        conditions = [_condition(text) for text in options.where]
        histories = [h for h in Store().histories() if all(_matches(h.run, *c) for c in conditions)]
        if options.command == "pack":
            if not histories:
                raise ValueError(f"no stored run matches {' '.join(options.where) or 'anything'}")
            write(histories, options.file)
            if options.made_by:
                from ncutils.book.manifest import describe

                describe(options.file, options.made_by, options.commit)
            print(f"{len(histories)} runs in {options.file}, {options.file.stat().st_size / 1e6:.2f} MB")
        elif not histories:
            print(f"no run is stored in {Store().folder}", file=sys.stderr)
        elif options.csv:
            table(histories).to_csv(sys.stdout, index=False)
        else:
            print(table(histories)[SHOWN].to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    except BrokenPipeError:
        return 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"ncutils: {error}", file=sys.stderr)
        return 2
    return 0


def _sweep(options) -> int:
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers = {options.workers} is not allowed: it must be 1 or more")
    entries, store = sweeps.read_grid(options.grid), Store()
    distinct = list({run.hash: run for _, run in entries}.values())
    missing = [run for run in distinct if run not in store]
    print(f"{len(entries)} runs, {len(distinct)} distinct, {len(distinct) - len(missing)} stored")
    if options.dry_run:
        _print_plan(entries, missing, options)
        return 0
    started = time.perf_counter()
    try:
        histories = sweeps.train_all(
            distinct, store, options.device, options.workers, options.ray, options.gpus_per_run
        )
    except KeyboardInterrupt:
        done = sum(run in store for run in missing)
        print(
            f"\nstopped: {done} of {len(missing)} runs are done and stored; the same command goes on",
            file=sys.stderr,
        )
        return 130
    diverged, valid = sum(h.diverged for h in histories), sum(h.valid for h in histories)
    print(
        f"{len(missing)} more stored in {time.perf_counter() - started:.0f} s; of all {len(histories)}, {diverged} diverged "
        f"and {len(histories) - diverged - valid} stay under 99 % training accuracy"
    )
    return 0


def _print_plan(entries: list[tuple[str, Run]], missing: list[Run], options) -> None:
    """Counts by setting, and what is missing times what a step costs here and now."""
    rows = [(run.arch, run.dataset, name, 1, run.hash) for name, run in entries]
    plan = pd.DataFrame(rows, columns=["arch", "dataset", "optimizer", "runs", "hash"])
    plan["distinct"] = ~plan["hash"].duplicated()
    plan["stored"] = plan["distinct"] & ~plan["hash"].isin([run.hash for run in missing])
    print(plan.drop(columns="hash").groupby(["arch", "dataset", "optimizer"], sort=False).sum().to_string())
    if not missing:
        return
    device = pick_device(options.device)
    seconds = sum(sweeps.seconds_a_run(missing, options.device).values())
    workers = options.workers or sweeps.default_workers(options.device)
    print(
        f"{len(missing)} to train: {_duration(seconds)} of one worker, {_duration(seconds / workers)} with {workers}, by the "
        f"time of three steps of each kind of network on this {'GPU' if device.type == 'cuda' else 'CPU'} ({device_name(device)})"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--where {text!r} is not of the form FIELD=VALUE")
    if name not in (fields := [*Run.model_fields, "optimizer", "wd"]):
        raise ValueError(f"unknown field {name!r} in --where: use one of {', '.join(fields)}")
    return name, value


def _matches(run: Run, name: str, value: str) -> bool:
    found = getattr(run, name)
    with contextlib.suppress(ValueError):
        return found == float(value) if isinstance(found, float) else str(found) == value
    return False


if __name__ == "__main__":
    sys.exit(main())
