"""Neural collapse under different optimizers: the module behind the book.

`metrics` (NC0 to NC4), `theory` (closed forms), `published` (the paper's numbers), `models`, `optimizers`, `data`,
`training` (Run -> History), `store` (runs on disk), `sweeps` (many runs), `analysis` (numbers from stored runs), `figures`,
`tables`, `explorers`, `charts`, `chapters`, `scoreboard`. Each imports only what stands before it in this list.
"""

from pathlib import Path


def project_folder(name: str) -> Path:
    """A folder of the clone that this module stands in; of the current folder where it is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / name
