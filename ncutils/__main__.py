"""`python -m ncutils sweep GRID.yaml` trains a grid, `runs` prints what is stored, `pack` copies stored runs into one file,
`scoreboard` writes what the paper says and what is seen here into the pages that say so."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from ncutils import sweeps
from ncutils.files import expanded, project_folder
from ncutils.store import Store, read, read_grid, table, where, write

SHOWN = "run optimizer arch width dataset n_train lr momentum coupled_wd decoupled_wd epochs seed "
SHOWN += "train_acc test_acc nc0 nc1 nc2 nc3 valid wall_s"


def main(arguments: list[str] | None = None) -> int:
    """The commands. Returns the exit status: 2, and one sentence on stderr, where they are not allowed."""
    parser = argparse.ArgumentParser(prog="python -m ncutils", description=__doc__)
    commands = parser.add_subparsers(required=True)
    sweep = commands.add_parser("sweep", help="train what a grid file names and the store lacks")
    sweep.set_defaults(call=_sweep)
    sweep.add_argument("grid", type=Path, help="for example params/paper/grid.yaml")
    sweep.add_argument("--dry-run", action="store_true", help="count and estimate, train nothing")
    sweep.add_argument("--device", help="cpu or cuda (default: the GPU if there is one, with --ray cpu)")
    either = sweep.add_mutually_exclusive_group()
    either.add_argument("--workers", type=int, help="processes here (default: one a core, one on a GPU)")
    either.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster: 'auto', or the head node's address")
    of_gpu = "share of a GPU a run (default: 1), with --ray and --device cuda"
    sweep.add_argument("--gpus-per-run", type=float, help=of_gpu)
    runs = commands.add_parser("runs", help="one line a stored run: its fields and its final row")
    runs.set_defaults(call=_runs)
    runs.add_argument("--csv", action="store_true", help="all columns, as CSV")
    pack = commands.add_parser("pack", help="copy stored runs into one Parquet file")
    pack.set_defaults(call=_pack)
    pack.add_argument("file", help="for example results/03_adamw_FashionMNIST.parquet")
    made_by = "what trained them: for manifest.csv beside the file"
    pack.add_argument("--made-by", metavar="COMMAND", type=_text, help=made_by)
    pack.add_argument(
        "--commit", help="of the code that trained them, for the manifest (default: the present)"
    )
    for command in (runs, pack):
        only = "only runs with, say, dataset=digits epochs=200"
        command.add_argument(
            "--where", nargs="*", action="extend", default=[], metavar="FIELD=VALUE", help=only
        )
    board = commands.add_parser(
        "scoreboard", help="write it, the verdict and their digests into their pages, from results/"
    )
    board.set_defaults(call=_scoreboard)
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale that lacks a character must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return options.call(options) or 0
    except BrokenPipeError:
        return 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"ncutils: {error}", file=sys.stderr)
        return 2


def _text(argument: str) -> str:
    """An argument in UTF-8, where Python has taken it for the locale's encoding."""
    return os.fsencode(argument).decode("utf-8", "replace")


def _sweep(options) -> int | None:
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers = {options.workers} is not allowed: it must be 1 or more")
    if options.ray == "":
        raise ValueError("ray = '' is not allowed: it must be 'auto' or the head node's address")
    of_gpus = options.ray and (options.device or "").startswith("cuda")
    share = options.gpus_per_run
    if share is not None and not of_gpus:
        raise ValueError("gpus-per-run is not allowed without --ray and --device cuda")
    if share is not None and not (0 < share < 1 or (share >= 1 and share % 1 == 0)):
        raise ValueError(
            f"gpus-per-run = {share:g} is not allowed: it must be a share of one GPU above 0, or a whole number of them"
        )
    entries, store = read_grid(options.grid), Store()
    distinct = list({run.hash: run for _, run in entries}.values())
    known = {h.run.hash for h in store.histories()}  # to look for each anew would take a second a thousand
    missing = [run for run in distinct if run.hash not in known or run not in store]
    print(f"{len(entries)} runs, {len(distinct)} distinct, {len(distinct) - len(missing)} stored")
    if options.dry_run:
        print(sweeps.plan(entries, missing, options.device, options.workers))
        return 0
    gpus, started = 1.0 if share is None else share, time.perf_counter()
    how = options.device, options.workers, options.ray, gpus
    try:
        histories = sweeps.train_all(distinct, store, *how)
    except KeyboardInterrupt:
        done = f"{sum(run in store for run in missing)} of {len(missing)} runs are done and stored"
        print(f"\nstopped: {done}; the same command goes on", file=sys.stderr)
        return 130
    diverged, valid = sum(h.diverged for h in histories), sum(h.valid for h in histories)
    print(
        f"{len(missing)} more stored in {time.perf_counter() - started:.0f} s; of all {len(histories)}, {diverged} "
        f"diverged and {len(histories) - diverged - valid} fail the paper's filter by their training accuracy"
    )
    return 0


def _runs(options) -> None:
    histories = where(Store().histories(), options.where)
    if not histories:
        which = f" with {' '.join(options.where)}" if options.where else ""
        print(f"no run{which} is stored in {Store().folder}, and none that ships", file=sys.stderr)
    elif options.csv:
        table(histories).to_csv(sys.stdout, index=False)
    else:
        print(table(histories)[SHOWN.split()].to_string(index=False, float_format=lambda x: f"{x:.4g}"))


def _pack(options) -> None:
    histories = where(Store().histories(), options.where)
    if not histories:
        raise ValueError(f"no stored run matches {' '.join(options.where) or 'anything'}")
    if (file := expanded(options.file)).is_dir():
        raise ValueError(f"{file} is a folder: name a file in it")
    if options.commit and not options.made_by:
        raise ValueError("commit is not allowed without made-by: it goes into the manifest with it")
    if options.made_by:
        from ncutils.book import manifest

        # before anything is written
        commit = options.commit or manifest.present_commit()
        manifest.lines_beside(file)
    if file.is_file():
        try:
            with warnings.catch_warnings(record=True) as unknown:  # runs that this version leaves out
                warnings.simplefilter("always")
                others = read(file).keys() - {h.run.hash for h in histories}
        except ValueError:
            raise ValueError(f"{file} is there and no file of runs: name another one") from None
        if lost := len(others) + len(unknown):
            raise ValueError(f"{file} holds {lost} other runs: remove it first, or name another one")
    write(histories, file)
    if options.made_by:
        manifest.describe(file, options.made_by, commit)
    print(f"{len(histories)} runs in {file}, {file.stat().st_size / 1e6:.2f} MB")


def _scoreboard(options) -> None:
    from ncutils.book import scoreboard

    scoreboard.write(project_folder(""))


def command() -> None:
    """What `ncutils` and `python -m ncutils` run: `main`, with the process's exit status."""
    # `kill`, or a cluster's time limit, stops as Ctrl-C does: else the worker processes would train on
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    command()
