"""Files: where the project's are, written whole or not at all, set aside where they cannot be used."""

import contextlib
import os
import warnings
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]  # where this module stands in one


def in_clone() -> bool:
    """Whether this module stands in a clone of the project, whose results and parameters are beside it."""
    return (CLONE / "pyproject.toml").exists() and (CLONE / "chapters").is_dir()


def project_folder(name: str) -> Path:
    """A folder of the clone that this module stands in; of the current folder where it is installed elsewhere. An absolute
    name, or one under `~`, stands for itself."""
    return (CLONE if in_clone() else Path.cwd()) / expanded(name)


def expanded(name: str | Path) -> Path:
    """A path as it is named, where `~` is the home folder. Raises ValueError for one of a user who is not here."""
    if (path := os.path.expanduser(name)).startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"{path} is not a folder or file here: {user} is no user's home folder")
    return Path(path)


def chosen_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, where `~` is the home folder, or `project_folder(name)`."""
    try:
        return expanded(os.environ.get(variable) or project_folder(name))
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


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
    """Renames a file that cannot be used, so that it is made anew and can still be looked at, or leaves it out; and warns."""
    aside, n = path.with_name(f"{path.name}.unreadable"), 1
    while aside.exists():  # what was set aside before may be looked at, too
        aside, n = path.with_name(f"{path.name}.unreadable{n}"), n + 1
    try:
        os.replace(path, aside)
        done = f"set aside as {aside.name}"
    except OSError:  # the folder is read-only, or another process was faster
        done = "left out"
    warnings.warn(f"{path} is {done}: {reason}", stacklevel=4)
