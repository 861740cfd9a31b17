"""results/manifest.csv: what made each shipped file, on which device, in how long."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd

from ncutils.files import project_folder, write_whole
from ncutils.store import read


def describe(path: Path, command: str, commit: str) -> None:
    """Writes a file's line in manifest.csv beside it: the command and the code's commit that made its runs, devices, seconds
    of training in all, number of runs, and of those that the paper's filter drops."""
    manifest = path.with_name("manifest.csv")
    lines = {}
    if manifest.exists():
        lines = pd.read_csv(manifest, index_col="file", dtype={"commit": str}).to_dict("index")
    lines[path.name] = {"command": command, "commit": commit} | summary(path)
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("file").sort_index()
    write_whole(manifest, table.to_csv().encode())


def present_commit() -> str:
    """The short name of the code's commit. Raises ValueError where git is missing or refuses."""
    git = ["git", "-C", str(project_folder(".")), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        why = " ".join((getattr(error, "stderr", "") or str(error)).split())
        raise ValueError(f"the code's commit is not known ({why}): name it with --commit") from None


def summary(path: Path) -> dict:
    """Devices, seconds of training, runs, and runs dropped by the paper's filter of a Parquet file."""
    histories = list(read(path).values())
    return {
        "device": "; ".join(sorted({h.info["device"] for h in histories})),
        "wall_s": round(sum(h.info["wall_s"] for h in histories)),
        "runs": len(histories),
        "dropped": sum(not h.valid for h in histories),
    }
