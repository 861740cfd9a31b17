"""Runs on disk: found by content, written whole or not at all.

A Parquet file holds the History of one Run or of many: the column `run` is the Run's hash, the file's metadata has a
record (`run`, `info`) for each hash. The store's folder (NCUTILS_RUNS, default runs/ in the project) has one file a
run, written to a temporary name and renamed. The results that ship with the book (files of many runs in
results/) read as if they were there.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ncutils import project_folder
from ncutils.training import History, Run

_KEY = b"ncutils"


class Store:
    """The runs of one folder, and the shipped ones."""

    def __init__(self, folder: str | Path | None = None, shipped: str | Path | None = None):
        self.folder = Path(folder or os.environ.get("NCUTILS_RUNS") or project_folder("runs"))
        self.shipped = Path(shipped or project_folder("results"))

    def get(self, run: Run) -> History | None:
        """The stored History of a Run, or None."""
        path = self._path(run.hash)
        if path.exists():
            return next(iter(_read(path)), None)
        return next((found[run.hash] for found in self._shipped() if run.hash in found), None)

    def __contains__(self, run: Run) -> bool:
        return self._path(run.hash).exists() or any(run.hash in found for found in self._shipped())

    def put(self, history: History) -> None:
        """Stores a History under its Run's hash, whole or not at all. Raises OSError where the folder is not writable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write([history], self._path(history.run.hash))

    def histories(self) -> list[History]:
        """Every stored History, the folder's before the shipped, each Run once."""
        found = {}
        for path in sorted(self.folder.glob("*.parquet")):
            found |= {history.run.hash: history for history in _read(path)}
        for shipped in self._shipped():
            found = shipped | found
        return list(found.values())

    def checkpoint(self, run: Run) -> Path:
        """Where a Run in progress keeps its state."""
        return self.folder / f"{run.hash}.checkpoint"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def _shipped(self) -> list[dict[str, History]]:
        return [_read_once(path, path.stat().st_mtime_ns) for path in sorted(self.shipped.glob("*.parquet"))]


def write(histories: list[History], path: Path) -> None:
    """Histories into one Parquet file, by way of a temporary name beside it."""
    frames = [h.frame.assign(run=h.run.hash) for h in histories]
    records = {h.run.hash: {"run": h.run.model_dump(mode="json"), "info": h.info} for h in histories}
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(records).encode()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(path: Path, command: str, commit: str | None = None) -> None:
    """Writes a file's line in manifest.csv beside it: the command and the code's commit that made its runs (default: the
    present one), devices, seconds of training in all, number of runs, and of those that the paper's filter drops."""
    manifest = path.with_name("manifest.csv")
    known = pd.read_csv(manifest, index_col="file") if manifest.exists() else pd.DataFrame()
    git = ["git", "-C", str(project_folder(".")), "rev-parse", "--short", "HEAD"]
    commit = commit or subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    line = {"command": command, "commit": commit} | summary(path)
    lines = known.to_dict("index") | {path.name: line}
    pd.DataFrame.from_dict(lines, orient="index").rename_axis("file").sort_index().to_csv(manifest)


def summary(path: Path) -> dict:
    """Devices, seconds of training, runs, and runs dropped by the paper's filter of a Parquet file."""
    histories = _read(path)
    return {
        "device": "; ".join(sorted({h.info["device"] for h in histories})),
        "wall_s": round(sum(h.info["wall_s"] for h in histories)),
        "runs": len(histories),
        "dropped": sum(not h.valid for h in histories),
    }


def table(histories: list[History]) -> pd.DataFrame:
    """One row a run: its hash, its optimizer's name, the Run's fields, the last measured row and how it was made."""
    rows = [
        {"run": h.run.hash, "optimizer": h.run.optimizer}
        | h.run.model_dump()
        | h.final.drop("gram", errors="ignore").to_dict()
        | {"valid": h.valid, "diverged_epoch": h.info.get("diverged_epoch"), "wall_s": h.info.get("wall_s")}
        # the Run's lr is the initial one; the last row's, the last epoch's
        | {"lr": h.run.lr, "final_lr": h.final["lr"]}
        for h in histories
    ]
    return pd.DataFrame(rows)


def _records(path: Path) -> dict:
    metadata = pq.read_metadata(path).metadata or {}
    if _KEY not in metadata:
        raise ValueError(f"{path} was not written by ncutils")
    return json.loads(metadata[_KEY])


@functools.cache
def _read_once(path: Path, modified: int) -> dict[str, History]:
    """The Histories in a shipped file by hash, read anew when it was modified."""
    return {history.run.hash: history for history in _read(path)}


def _read(path: Path) -> list[History]:
    """The Histories in a file. A file that cannot be read is named in a warning and skipped."""
    try:
        records = _records(path)
        return [
            History(Run(**records[n]["run"]), group.drop(columns="run").reset_index(drop=True), records[n]["info"])
            for n, group in pd.read_parquet(path).groupby("run", sort=False)
        ]
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        warnings.warn(f"{path} is not a readable store file and is left out: {error}", stacklevel=3)
        return []
