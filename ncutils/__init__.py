"""Neural collapse under different optimizers: the module behind the book.

`metrics` (NC0 to NC4), `theory` (closed forms), `published` (the paper's numbers), `machine` (device, threads, memory),
`models`, `optimizers`, `data`, `training` (Run -> History), `store` (runs on disk), `sweeps` (many runs), `analysis`
(numbers from stored runs), `figures`, `tables`, `explorers`, `charts`, `chapters`, `scoreboard`. Each imports only what
stands before it in this list.
"""

import contextlib
import os
import warnings
from pathlib import Path


def project_folder(name: str) -> Path:
    """A folder of the clone that this module stands in; of the current folder where it is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / name


def write_whole(path: Path, content: bytes) -> None:
    """A file written whole or not at all: under a temporary name beside it, then renamed. OSError in one sentence."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # nothing to remove in a read-only folder
            temporary.unlink()
        raise OSError(f"{path} cannot be written: {error.strerror}") from None


def set_aside(path: Path, reason) -> None:
    """Renames a file that cannot be used, so that it is made anew and can still be looked at, and warns."""
    aside = path.with_name(f"{path.name}.unreadable")
    os.replace(path, aside)
    warnings.warn(f"{path} is set aside as {aside.name}: {reason}", stacklevel=3)
