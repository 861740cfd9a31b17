"""Runs on disk: found by content, written whole or not at all; and the grids that name many of them.

A Parquet file holds the History of one Run or of many: the column `run` is the Run's hash; the file's metadata has for
each hash a record (`run`, `info`, and `last`, the last row), and a checksum of records and data. The store's folder
(NCUTILS_RUNS, default runs/ in the project) has one file a run, written to a temporary name and renamed; one that
cannot be read is set aside. The results that ship with a clone of the book (files of many runs in results/) read as if they
were there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from filelock import FileLock, Timeout

from ncutils.files import chosen_folder, expanded, in_clone, project_folder, set_aside, write_whole
from ncutils.metrics import KEYS
from ncutils.runs import History, Run, decay_budget, same_steps

if TYPE_CHECKING:
    # where it is used, it is imported: with pyarrow it takes longer than all else beside torch
    import pandas as pd

_KEY, _CHECKSUM = b"ncutils", b"crc32"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
MOST_RUNS = 1_000_000  # of one entry: a file from a stranger must not fill the memory


class _Grid(yaml.SafeLoader):
    """YAML in which no mapping has a key twice: the first value would go without a word. Nor is a whole number anything but
    decimal: 010 would be 8, and 1:30 be 90. As text, 010 is read as 10, and 1:30 refused."""

    yaml_implicit_resolvers = {
        first: [(tag, _DECIMAL if tag == "tag:yaml.org,2002:int" else found) for tag, found in of]
        for first, of in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        said = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for i, key in enumerate(said) if key in said[:i]]:
            raise yaml.composer.ComposerError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        return node


class Store:
    """The runs of one folder, and the shipped ones."""

    def __init__(self, folder: str | Path | None = None, shipped: str | Path | None = None):
        folder = expanded(folder) if folder else chosen_folder("NCUTILS_RUNS", "runs")
        self.folder = folder.absolute()  # worker processes keep the current folder that they started in
        if shipped:
            shipped = expanded(shipped).absolute()
        self.shipped = shipped or (project_folder("results") if in_clone() else None)

    def get(self, run: Run) -> History | None:
        """The stored History of a Run, or None."""
        name = run.hash
        path = self._path(name)
        if path.is_file():
            if history := self._own(path, leave_out=False).get(name):
                try:
                    _ = history.frame  # read now: what is wrong with it shows here
                    return history
                except ValueError as error:
                    set_aside(path, error)
            elif path.exists():
                set_aside(path, "it does not hold the run that it is named after")
        return next((found[name] for found in self._shipped() if name in found), None)

    def __contains__(self, run: Run) -> bool:
        return self.get(run) is not None

    def put(self, history: History) -> None:
        """Stores a History under its Run's hash, whole or not at all. Raises OSError where the folder is not writable."""
        write([history], self._path(history.run.hash))
        self.checkpoint(history.run).unlink(missing_ok=True)

    def histories(self) -> list[History]:
        """Every stored History, the folder's before the shipped, each Run once. Frames are read when they are asked for."""
        found: dict[str, History] = {}
        for runs in [*self._shipped(), *(self._own(path) for path in sorted(self.folder.glob("*.parquet")))]:
            found |= runs
        return list(found.values())

    @contextlib.contextmanager
    def claim(self, run: Run, wait: bool = True) -> Iterator[bool]:
        """Whoever trains a Run for this store holds its claim until the History is stored, so that no two processes train
        it at once. The claim ends with the process. Gives False where another holds it and `wait` is False.

        Raises OSError where the folder is not writable: before hours of training rather than after.
        """
        path = self._claimed(run)
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

    def clear(self, run: Run) -> None:
        """Removes the checkpoint and the claim of a stored Run: a process killed just after it had stored it leaves them."""
        if self.checkpoint(run).exists() or self._claimed(run).exists():
            with contextlib.suppress(OSError), self.claim(run, wait=False) as claimed:
                if claimed:
                    self.checkpoint(run).unlink(missing_ok=True)

    def checkpoint(self, run: Run) -> Path:
        """Where a Run in progress keeps its state."""
        return self.folder / f"{run.hash}.checkpoint"

    def _claimed(self, run: Run) -> Path:
        return self.folder / f".{run.hash}.lock"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def _own(self, path: Path, leave_out: bool = True) -> dict[str, History]:
        """The Histories in a file of the folder by hash. One that is not whole, or foreign, is set aside; one that cannot be
        read now, for want of file handles, say, is left out with a warning, or an OSError."""
        try:
            return read(path)
        except FileNotFoundError:  # another process has just set it aside
            return {}
        except OSError as error:  # a folder of such a name, or one that may not be read
            if not leave_out:
                raise
            warnings.warn(f"{path} is left out: {error}", stacklevel=4)
            return {}
        except ValueError as error:
            set_aside(path, error)
            return {}

    def _shipped(self) -> list[dict[str, History]]:
        files = sorted(self.shipped.glob("*.parquet")) if self.shipped else []
        return [_read_once(path, path.stat().st_mtime_ns) for path in files if path.is_file()]


class _Stored(History):
    """A History of which the record is known, and the frame is read when it is asked for.

    Raises ValueError, naming the file, where the frame is not the one that the record describes.
    """

    _at: tuple[Path, int]

    def __init__(self, run: Run, info: dict, final: dict, at: tuple[Path, int]):
        self.__dict__.update(run=run, info=info, final=final, _at=at)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        frame = _frames(*self._at).get(self.run.hash)
        if frame is not None and set(self.final) <= set(frame):  # a file has the columns of all its runs
            gram = ["gram"] if "gram" in frame and frame["gram"].notna().all() else []
            frame = frame[[*self.final, *gram]]
        if frame is None or repr(History(self.run, frame).final) != repr(self.final):
            raise ValueError(f"it does not end with the row that its record names: {self._at[0]}")
        return frame


def write(histories: list[History], path: Path) -> None:
    """Histories, each Run's once, into one Parquet file, whole or not at all."""
    import pandas as pd

    histories = list({h.run.hash: h for h in histories}.values())
    frame = pd.concat([h.frame.assign(run=h.run.hash) for h in histories], ignore_index=True)
    dumps = [(h, h.run.model_dump(mode="json")) for h in histories]
    records = {h.run.hash: {"run": run, "info": h.info, "last": h.final} for h, run in dumps}
    record = json.dumps(records).encode()
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    content = io.BytesIO()
    with pq.ParquetWriter(content, table.schema, compression="zstd", write_statistics=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_KEY: record, _CHECKSUM: _checksum(content.getvalue(), record)})
    write_whole(path, content.getvalue())


def _checksum(data: bytes, record: bytes) -> bytes:
    return b"%d" % zlib.crc32(record, zlib.crc32(data))


def where(histories: list[History], conditions: list[str]) -> list[History]:
    """Those with these values of fields: conditions of the form FIELD=VALUE, `optimizer` and `wd` among the fields."""
    fields = [*Run.model_fields, "optimizer", "wd"]
    for text in conditions:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--where {text!r} is not of the form FIELD=VALUE")
        if name not in fields:
            raise ValueError(f"unknown field {name!r} in --where: use one of {', '.join(fields)}")
        histories = [h for h in histories if _is(getattr(h.run, name), value)]
    return histories


def _is(found, value: str) -> bool:
    if not isinstance(found, float):
        return str(found) == value
    with contextlib.suppress(ValueError):
        return found == float(value)
    return False


def table(histories: list[History]) -> pd.DataFrame:
    """One row a run, which all figures, tables and claims read: its hash (`run`), that of the Run with the `same_steps`
    (`runs.same_steps`), its optimizer's name, the Run's fields, `wd`, the decay `budget`, the training `images`, the last
    measured row, whether it is `valid`, and how it was made."""
    import pandas as pd

    rows = [
        {"run": h.run.hash, "same_steps": same_steps(h.run).hash, "optimizer": h.run.optimizer}
        | h.run.model_dump()
        | h.final
        # the Run's lr is the initial one; the last row's, the last epoch's
        | {"lr": h.run.lr, "final_lr": h.final["lr"], "wd": h.run.wd, "budget": decay_budget(h)}
        | {"images": h.info["n_train"], "valid": h.valid}
        | {"diverged_epoch": h.info.get("diverged_epoch"), "wall_s": h.info.get("wall_s")}
        for h in histories
    ]
    if not rows:
        of_runs = ["run", "same_steps", "optimizer", *Run.model_fields, "wd", "budget", "images"]
        empty = pd.DataFrame(columns=[*of_runs, "train_acc", *KEYS, "valid", "diverged_epoch", "wall_s"])
        # a mask of another type would choose columns
        return empty.astype({"valid": bool} | dict.fromkeys(("lr", "wd", "budget", *KEYS), float))
    return pd.DataFrame(rows)


def read_grid(path: str | Path) -> list[tuple[str, Run]]:
    """The entries of a grid file, in order: the optimizer's name as given, and the Run. At wd 0 two names share a Run.

    A YAML mapping with `common`, fields of every run, and `entries`, a list of mappings. An entry holds fields of
    `Run`, with `optimizer` and `wd` (the paper's names, see `Run.named`) in place of rule and decays; a list stands
    for each of its values, and all lists of an entry are multiplied, the last one running fastest.
    Raises ValueError in one sentence for anything else, FileNotFoundError for a missing file.
    """
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"grid = {str(path)!r} is not a file")
    try:
        grid = _Grid(path.read_bytes()).get_single_data()  # UTF-8, or UTF-16 by its mark, whatever the locale
    except OSError:
        raise
    except Exception as error:  # a date's month 13 is a ValueError, "!!bool maybe" a KeyError
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(grid, dict) or not {"entries"} <= set(grid) <= {"common", "entries"}:
        raise ValueError(
            f"{path} must be a mapping with 'entries' and, if need be, 'common', and nothing else"
        )
    common, blocks = grid.get("common") or {}, grid["entries"]
    if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in (common, *blocks)):
        raise ValueError(f"{path}: 'common' must be a mapping of fields, 'entries' a list of such mappings")
    entries = []
    for block in blocks:
        fields = common | block
        values = [value if isinstance(value, list) else [value] for value in fields.values()]
        if missing := {"optimizer", "wd"} - set(fields):
            raise ValueError(f"{path}: {min(missing)!r} is missing in an entry: each has an optimizer and wd")
        if not 0 < (n := math.prod(map(len, values))) <= MOST_RUNS:
            raise ValueError(f"{path}: an entry stands for {n} runs, 1 to {MOST_RUNS:,} are allowed")
        for combination in itertools.product(*values):
            chosen = dict(zip(fields, combination))
            try:
                run = Run.named(**chosen)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {error}") from None
            entries.append((chosen["optimizer"], run))
    return entries


@functools.cache
def _read_once(path: Path, modified: int) -> dict[str, History]:
    """The Histories in a shipped file, read anew when it was modified. One that cannot be read is left out."""
    try:
        return read(path)
    except ValueError as error:
        warnings.warn(f"{path} is left out: {error}", stacklevel=4)
        return {}


def read(path: Path) -> dict[str, History]:
    """The Histories in a file by hash. Raises ValueError where it is not whole or not a store's.

    A run that this version does not know (a notebook's own rule, a later version's field) is left out with a warning.
    """
    modified, content = path.stat().st_mtime_ns, path.read_bytes()
    try:
        footer = pq.ParquetFile(pa.BufferReader(content)).metadata
        data, metadata = content[: -8 - footer.serialized_size], footer.metadata  # 8: its length and PAR1
        if metadata[_CHECKSUM] != _checksum(data, metadata[_KEY]):
            raise ValueError("its checksum is wrong")
        records = json.loads(metadata[_KEY])
        parts = [(name, r["run"], dict(r["info"]), dict(r["last"])) for name, r in records.items()]
    except MemoryError as error:  # nothing is wrong with the file
        raise OSError(f"{path} cannot be read now: the memory is full ({error})") from None
    except Exception as error:  # a file from a stranger can be wrong in any way
        raise _not_ours(error) from None
    found: dict[str, History] = {}
    for name, fields, info, last in parts:
        try:
            # a later version's fields, which may be at their defaults: the hash below tells
            run = Run.stored({k: v for k, v in fields.items() if k in Run.model_fields})
            if run.hash != name:
                raise ValueError("its hash is another one now")
            found[name] = _Stored(run, info, last, (path, modified))
        except (ValueError, TypeError) as error:
            what = f"{path}: run {name} is not known to this version and left out"
            warnings.warn(f"{what}: {error}", stacklevel=4)
    return found


@functools.lru_cache(64)  # enough for the shipped files, which hold many runs each
def _frames(path: Path, modified: int) -> dict[str, pd.DataFrame]:
    """The frames in a file by hash of their run. Raises ValueError where they cannot be read."""
    content = path.read_bytes()  # an OSError is no fault of the file's
    try:
        frame = pq.ParquetFile(pa.BufferReader(content)).read().to_pandas()
        parts = frame.groupby("run", sort=False)
        return {name: rows.drop(columns="run").reset_index(drop=True) for name, rows in parts}
    except MemoryError as error:  # nothing is wrong with the file
        raise OSError(f"{path} cannot be read now: the memory is full ({error})") from None
    except Exception as error:  # as above
        raise ValueError(f"{_not_ours(error)}: {path}") from None


def _not_ours(error: Exception) -> ValueError:
    text = " ".join(str(error).split())
    return ValueError(f"it is not whole, or was not written by ncutils ({type(error).__name__}: {text:.200})")
