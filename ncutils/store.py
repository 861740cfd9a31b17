"""Runs on disk: found by content, written whole or not at all.

A Parquet file holds the History of one Run or of many: the column `run` is the Run's hash, the file's metadata has a
record (`run`, `info`) for each hash. The store's folder (NCUTILS_RUNS, default runs/ in the project) has one file a
run, written to a temporary name and renamed; one that cannot be read is set aside. The results that ship with the book
(files of many runs in results/) read as if they were there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ncutils import project_folder, set_aside, write_whole
from ncutils.training import History, Run

if TYPE_CHECKING:  # where it is used, pandas is imported: with pyarrow it takes longer than all else beside torch
    import pandas as pd

_KEY = b"ncutils"
_MANY = 100  # runs that are read anew before it pays to remember them


class Store:
    """The runs of one folder, and the shipped ones."""

    def __init__(self, folder: str | Path | None = None, shipped: str | Path | None = None):
        self.folder = Path(folder or os.environ.get("NCUTILS_RUNS") or project_folder("runs"))
        self.shipped = Path(shipped or project_folder("results"))

    def get(self, run: Run) -> History | None:
        """The stored History of a Run, or None."""
        path = self._path(run.hash)
        if path.exists():
            if history := self._own(path).get(run.hash):
                return history
            if path.exists():
                self._set_aside(path, "it does not hold the run that it is named after")
        return next((found[run.hash] for found in self._shipped() if run.hash in found), None)

    def __contains__(self, run: Run) -> bool:
        return self.get(run) is not None

    def put(self, history: History) -> None:
        """Stores a History under its Run's hash, whole or not at all. Raises OSError where the folder is not writable."""
        write([history], self._path(history.run.hash))
        self.checkpoint(history.run).unlink(missing_ok=True)

    def histories(self) -> list[History]:
        """Every stored History, the folder's before the shipped, each Run once. Frames are read when they are asked for.

        What files with many runs hold, once read and found whole, is kept in the folder's .listed.json, and believed as long as a
        file's time and size stay; without it, or where it is damaged, all is read again.
        """
        cache, found, new = self.folder / ".listed.json", {}, 0
        try:
            listed = json.loads(cache.read_bytes())
            listed = listed if isinstance(listed, dict) else {}
        except (OSError, ValueError):
            listed = {}
        kept = {}
        for path in [*sorted(self.shipped.glob("*.parquet")), *sorted(self.folder.glob("*.parquet"))]:
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process has just set it aside
                continue
            state = [stat.st_mtime_ns, stat.st_size]
            name = os.path.relpath(path, self.folder)
            try:
                runs = listed[name]["runs"] if listed[name]["state"] == state else None
                here = None if runs is None else {n: _Listed(path, state[0], n, *parts) for n, parts in runs.items()}
            except (LookupError, TypeError, ValueError):
                here = None
            if here is None:
                here = self._own(path) if path.parent == self.folder else _read_once(path, state[0])
                runs = {n: [h.run.model_dump(mode="json"), h.info, _last(h)] for n, h in here.items()}
                new += len(runs)
            kept[name] = {"state": state, "runs": runs}
            found |= here
        if new > _MANY:
            with contextlib.suppress(OSError):
                write_whole(cache, json.dumps(kept).encode())
        return list(found.values())

    @contextlib.contextmanager
    def claim(self, run: Run, wait: bool = True) -> Iterator[bool]:
        """Whoever trains a Run for this store holds its claim until the History is stored, so that no two processes train
        it at once. The claim ends with the process. Gives False where another holds it and `wait` is False.

        Raises OSError where the folder is not writable: before hours of training rather than after.
        """
        path = self.folder / f".{run.hash}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=-1 if wait else 0)
            lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise OSError(
                f"{self.folder} cannot be written: {error.strerror}; set NCUTILS_RUNS to another folder"
            ) from None
        try:
            for left in self.folder.glob(f".{run.hash}.*.tmp"):  # by a process that was killed while it wrote
                left.unlink()
            yield True
        finally:
            with contextlib.suppress(OSError):  # before the release: who waits for a removed file starts over
                path.unlink()
            lock.release()

    def checkpoint(self, run: Run) -> Path:
        """Where a Run in progress keeps its state."""
        return self.folder / f"{run.hash}.checkpoint"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def _own(self, path: Path) -> dict[str, History]:
        """The Histories in a file of the folder by hash. One that is not whole, or foreign, is set aside."""
        try:
            return _read(path)
        except FileNotFoundError:  # another process has just set it aside
            return {}
        except ValueError as error:
            self._set_aside(path, error)
            return {}

    def _set_aside(self, path: Path, reason) -> None:
        try:
            set_aside(path, reason)
        except OSError:  # the folder is read-only, or another process was faster
            warnings.warn(f"{path} is left out: {reason}", stacklevel=4)

    def _shipped(self) -> list[dict[str, History]]:
        return [_read_once(path, path.stat().st_mtime_ns) for path in sorted(self.shipped.glob("*.parquet"))]


class _Listed(History):
    """A History known by its last row, its frame not yet read."""

    def __init__(self, path: Path, modified: int, name: str, fields: dict, info: dict, last: dict):
        run = Run(**fields)
        if run.hash != name:
            raise ValueError(f"{name} is another run's hash now")
        self.__dict__.update(run=run, info=info, last=last, _at=(path, modified))

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        return _read_once(*self._at)[self.run.hash].frame

    @functools.cached_property
    def final(self) -> pd.Series:
        import pandas as pd

        return pd.Series(list(self.last.values()), index=_index(tuple(self.last)))


@functools.cache
def _index(names: tuple[str, ...]) -> pd.Index:
    """Shared: to make one takes longer than all else about a row."""
    import pandas as pd

    return pd.Index(names)


def _last(history: History) -> dict:
    """The last row's numbers."""
    if isinstance(history, _Listed):
        return history.last
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in history.final.items()
        if name != "gram"
    }


def write(histories: list[History], path: Path) -> None:
    """Histories into one Parquet file, whole or not at all."""
    import pandas as pd

    frames = [h.frame.assign(run=h.run.hash) for h in histories]
    records = {h.run.hash: {"run": h.run.model_dump(mode="json"), "info": h.info} for h in histories}
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(records).encode()})
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    write_whole(path, content.getvalue())


def describe(path: Path, command: str, commit: str | None = None) -> None:
    """Writes a file's line in manifest.csv beside it: the command and the code's commit that made its runs (default: the
    present one), devices, seconds of training in all, number of runs, and of those that the paper's filter drops."""
    import pandas as pd

    manifest = path.with_name("manifest.csv")
    known = pd.read_csv(manifest, index_col="file") if manifest.exists() else pd.DataFrame()
    git = ["git", "-C", str(project_folder(".")), "rev-parse", "--short", "HEAD"]
    commit = commit or subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    line = {"command": command, "commit": commit} | summary(path)
    lines = known.to_dict("index") | {path.name: line}
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("file").sort_index()
    write_whole(manifest, table.to_csv().encode())


def summary(path: Path) -> dict:
    """Devices, seconds of training, runs, and runs dropped by the paper's filter of a Parquet file."""
    histories = list(_read(path).values())
    return {
        "device": "; ".join(sorted({h.info["device"] for h in histories})),
        "wall_s": round(sum(h.info["wall_s"] for h in histories)),
        "runs": len(histories),
        "dropped": sum(not h.valid for h in histories),
    }


def table(histories: list[History]) -> pd.DataFrame:
    """One row a run: its hash, its optimizer's name, the Run's fields, the last measured row and how it was made."""
    import pandas as pd

    rows = [
        {"run": h.run.hash, "optimizer": h.run.optimizer}
        | h.run.model_dump()
        | _last(h)
        | {"valid": h.valid, "diverged_epoch": h.info.get("diverged_epoch"), "wall_s": h.info.get("wall_s")}
        # the Run's lr is the initial one; the last row's, the last epoch's
        | {"lr": h.run.lr, "final_lr": h.final["lr"]}
        for h in histories
    ]
    return pd.DataFrame(rows)


@functools.cache
def _read_once(path: Path, modified: int) -> dict[str, History]:
    """The Histories in a shipped file, read anew when it was modified. One that cannot be read is left out."""
    try:
        return _read(path)
    except ValueError as error:
        warnings.warn(f"{path} is left out: {error}", stacklevel=4)
        return {}


def _read(path: Path) -> dict[str, History]:
    """The Histories in a file by hash. Raises ValueError where it is not whole or not a store's.

    A run that this version does not know (a notebook's own rule, a later version's field) is left out with a warning.
    """
    content = pa.BufferReader(path.read_bytes())
    try:
        table = pq.read_table(content, page_checksum_verification=True)
        records = json.loads((table.schema.metadata or {})[_KEY])
        frames = {
            n: f.drop(columns="run").reset_index(drop=True) for n, f in table.to_pandas().groupby("run", sort=False)
        }
        parts = [(name, records[name]["run"], frame, records[name]["info"]) for name, frame in frames.items()]
    except Exception as error:  # noqa: BLE001 - a file from a stranger can be wrong in any way
        text = " ".join(str(error).split())
        raise ValueError(
            f"it is not whole, or was not written by ncutils ({type(error).__name__}: {text:.200})"
        ) from None
    found = {}
    for name, fields, frame, info in parts:
        try:
            run = Run(**fields)
            if run.hash != name:
                raise ValueError("its hash is another one now")
            found[name] = History(run, frame, info)
        except (ValueError, TypeError) as error:
            warnings.warn(f"{path}: run {name} is not known to this version and left out: {error}", stacklevel=4)
    return found
