"""What a chapter needs beside runs and figures: its parameters checked."""

from __future__ import annotations

import ast
import difflib
import itertools


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
                close = difflib.get_close_matches(name, declared, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(f"unknown parameter {name!r}: {hint}this chapter takes {', '.join(declared)}")


def _assigned(source: str) -> list[str]:
    return [
        target.id
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
