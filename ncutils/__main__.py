"""`python -m ncutils runs`: what is stored. `python -m ncutils pack`: stored runs into one file that ships."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ncutils.store import Store, table, write
from ncutils.training import Run

SHOWN = ["run", "optimizer", "arch", "width", "dataset", "n_train", "lr", "momentum", "coupled_wd", "decoupled_wd"]
SHOWN += ["epochs", "seed", "train_acc", "test_acc", "nc0", "nc1", "nc2", "nc3", "valid", "wall_s"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ncutils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("runs", help="one line a stored run: its fields and its final row")
    runs.add_argument("--csv", action="store_true", help="all columns, as CSV")
    pack = commands.add_parser("pack", help="copy stored runs into one Parquet file")
    pack.add_argument("file", type=Path, help="for example results/03_adamw_FashionMNIST.parquet")
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
        conditions = [_condition(text) for text in options.where]
        histories = [h for h in Store().histories() if all(_matches(h.run, *c) for c in conditions)]
        if options.command == "pack":
            if not histories:
                raise ValueError(f"no stored run matches {' '.join(options.where) or 'anything'}")
            options.file.parent.mkdir(parents=True, exist_ok=True)
            write(histories, options.file)
            print(f"{len(histories)} runs in {options.file}, {options.file.stat().st_size / 1e6:.2f} MB")
        elif not histories:
            print(f"no run is stored in {Store().folder}", file=sys.stderr)
        elif options.csv:
            table(histories).to_csv(sys.stdout, index=False)
        else:
            print(table(histories)[SHOWN].to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    except (ValueError, OSError) as error:
        print(f"ncutils: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    return 0


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--where {text!r} is not of the form FIELD=VALUE")
    if name not in Run.model_fields:
        raise ValueError(f"unknown field {name!r} in --where: use one of {', '.join(Run.model_fields)}")
    return name, value


def _matches(run: Run, name: str, value: str) -> bool:
    found = getattr(run, name)
    return str(found) == value or (isinstance(found, float) and _number(value) == found)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main())
