"""results/manifest.csv: what made each shipped file, on which device, in how long."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd

from ncutils.files import in_clone, project_folder, write_whole
from ncutils.store import read


def describe(path: Path, command: str, commit: str) -> None:
    """Writes a file's line in manifest.csv beside it: the command and the code's commit that made its runs, devices, seconds
    of training in all, number of runs, and of those that the paper's filter drops."""
    lines = lines_beside(path)
    lines[path.name] = {"command": command, "commit": commit} | summary(path)
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("file").sort_index()
    write_whole(path.with_name("manifest.csv"), table.to_csv().encode())


def lines_beside(path: Path) -> dict[str, dict]:
    """The lines of the manifest.csv beside a file, by the name of theirs. Raises ValueError where it cannot be read."""
    manifest = path.with_name("manifest.csv")
    if not manifest.exists():
        return {}
    try:
        return pd.read_csv(manifest, index_col="file", dtype={"commit": str}).to_dict("index")
    except ValueError as error:  # empty, of another encoding, without such a column
        raise ValueError(f"{manifest} is no CSV in UTF-8 with a column 'file': {error}") from None


def present_commit() -> str:
    """The short name of the code's commit. Raises ValueError where git is missing or refuses, or the code is in no clone."""
    git, why = ["git", "-C", str(project_folder(".")), "rev-parse", "--short", "HEAD"], "it is in no clone"
    utf8 = {"encoding": "utf-8", "errors": "replace"}
    try:
        if in_clone():
            if commit := subprocess.run(git, capture_output=True, check=True, **utf8).stdout.strip():
                return commit
            why = "git names none"
    except (OSError, subprocess.CalledProcessError) as error:
        why = " ".join((getattr(error, "stderr", "") or str(error)).split())
    raise ValueError(f"the code's commit is not known ({why}): name it with --commit")


def summary(path: Path) -> dict:
    """Devices, seconds of training, runs, and runs dropped by the paper's filter of a Parquet file."""
    histories = list(read(path).values())
    return {
        "device": "; ".join(sorted({h.info["device"] for h in histories})),
        "wall_s": round(sum(h.info["wall_s"] for h in histories)),
        "runs": len(histories),
        "dropped": sum(not h.valid for h in histories),
    }
