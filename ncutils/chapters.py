"""What a chapter needs beside figures: its parameters checked, its grid's runs."""

from __future__ import annotations

import ast
import itertools

from IPython.display import Markdown, display

from ncutils import project_folder
from ncutils.analysis import Groups, stored_grid
from ncutils.sweeps import train_all
from ncutils.training import unknown


def grid_runs(grid: str, train: bool = False, device: str | None = None, **fields) -> Groups:
    """The stored runs of a grid file of the project by optimizer (`analysis.stored_grid`), and a line that counts them.

    With `train`, what is missing is trained first, as `python -m ncutils sweep` does.
    Raises FileNotFoundError where no run is stored.
    """
    path = project_folder(grid)
    groups, missing = stored_grid(path, **fields)
    if train and missing:
        train_all(missing, device=device)
        groups, missing = stored_grid(path, **fields)
    runs = {h.run: h for histories in groups.values() for h in histories}
    if not runs:
        raise FileNotFoundError(
            f"none of the {len(missing)} runs that this chapter takes from {grid} is stored: "
            f"`python -m ncutils sweep {grid}` trains them, or the parameter train=True"
        )
    dropped = sum(not h.valid for h in runs.values())
    text = f"{len(runs)} runs of `{grid}`, {dropped} of them fail the paper's filter (99 % training accuracy)."
    if missing:
        text += f" {len(missing)} more are not stored: `python -m ncutils sweep {grid}` trains them."
    display(Markdown(text))
    return groups


def trained(groups: dict, device: str | None = None) -> dict:
    """The Histories of labelled lists of Runs, read or trained side by side (`sweeps.train_all`)."""
    found = iter(train_all([run for runs in groups.values() for run in runs], device=device))
    return {label: list(itertools.islice(found, len(runs))) for label, runs in groups.items()}


def check_parameters(cells: list[str]) -> None:
    """Refuses parameters that papermill injected and the chapter does not declare: a mistyped name is an error.

    `cells` is IPython's `In`: the source of the cells executed so far. papermill puts what it was given into a cell of
    its own, headed "# Parameters", after the cell that declares the chapter's parameters with their defaults.
    """
    for declaring, cell in itertools.pairwise(cells):
        if not cell.startswith("# Parameters"):
            continue
        declared = _assigned(declaring)
        for name in _assigned(cell):
            if name not in declared:
                raise ValueError(unknown(name, declared, "this chapter takes"))


def _assigned(source: str) -> list[str]:
    return [
        target.id
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
