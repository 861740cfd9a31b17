"""What every notebook repeats: its parameters checked, its runs, its sentences and tables."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import yaml
from IPython import get_ipython
from IPython.display import Markdown, display

from ncutils.analysis import Groups, once, regression, stored_grid
from ncutils.book import figures
from ncutils.book.style import METRICS as METRICS  # for the notebooks
from ncutils.files import project_folder
from ncutils.runs import History, Run, unknown
from ncutils.store import Store
from ncutils.sweeps import train_all


class Parameters(SimpleNamespace):
    """A chapter's parameters by name, and what most chapters make of them."""

    @property
    def seeds(self) -> range:
        """`n_seeds` seeds from `seed` on."""
        return range(self.seed, self.seed + getattr(self, "n_seeds", 1))

    def run(self, optimizer: str, wd: float, **changes) -> Run:
        """`Run.named` with all parameters that are fields of Run; SGD and SGDW take `lr_sgd` where there is one."""
        fields = {name: value for name, value in vars(self).items() if name in Run.model_fields}
        if optimizer in ("SGD", "SGDW") and hasattr(self, "lr_sgd"):
            fields["lr"] = self.lr_sgd
        return Run.named(optimizer, wd, **fields | changes)

    def runs(self, optimizer: str, wd: float, **changes) -> list[Run]:
        """One `run` a seed."""
        return [self.run(optimizer, wd, seed=seed, **changes) for seed in self.seeds]

    def sweep(self, wd: dict[str, list[float]], **changes) -> dict[str, list[Run]]:
        """By optimizer one `run` for each of its weight decays, and for each value of a change that is a list."""
        values = [value if isinstance(value, list) else [value] for value in changes.values()]
        each = [dict(zip(changes, chosen)) for chosen in itertools.product(*values)]
        return {
            name: [self.run(name, decay, **one) for decay in decays for one in each]
            for name, decays in wd.items()
        }


def parameters() -> Parameters:
    """The parameters that the notebook's first cell of code declares, with the values they have now; sets the figures' style.

    papermill puts what it was given into a cell of its own, headed "# Parameters". A name there that the chapter does not
    declare is refused: a mistyped name is an error, not a default.
    """
    names = get_ipython().user_ns
    declared = check_parameters(names["In"])
    figures.set_style()
    return Parameters(**{name: names[name] for name in declared})


def check_parameters(cells: list[str]) -> list[str]:
    """The names that a notebook declares in its first cell of plain assignments, once what papermill gave is among them.

    `cells` is IPython's `In`: the source of the cells executed so far.
    """
    assigned = [names for source in cells if (names := _assigned(source))]
    for source in cells:
        if source.startswith("# Parameters"):
            for name in _assigned(source):
                if name not in assigned[0]:
                    raise ValueError(unknown(name, assigned[0], "this chapter takes"))
    return assigned[0]


def _assigned(source: str) -> list[str]:
    """The names that a cell of plain assignments gives values, else none."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a cell with a magic command
        return []
    if not all(isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name) for s in statements):
        return []
    return [s.targets[0].id for s in statements]


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
    histories = [h for of_one in groups.values() for h in of_one]
    if not histories:
        raise FileNotFoundError(
            f"none of the {len(missing)} runs that this chapter takes from {grid} is stored: "
            f"`python -m ncutils sweep {grid}` trains them, or the parameter train=True"
        )
    n, runs = len({h.run for h in histories}), once(histories)
    differ = f", {len(runs)} of which differ in mathematics (SGD and SGDW take the same steps at momentum 0)"
    text = f"{n} runs of `{grid}`{differ if len(runs) < n else ''}, {sum(not h.valid for h in runs)} of them fail the paper's "
    text += "filter (99 % training accuracy)."
    if missing:
        text += f" {len(missing)} more are not stored: `python -m ncutils sweep {grid}` trains them."
    say(text)
    return groups


def trained(groups: dict, device: str | None = None) -> dict:
    """The Histories of labelled lists of Runs, read or trained side by side (`sweeps.train_all`)."""
    found = iter(train_all([run for runs in groups.values() for run in runs], device=device))
    return {label: list(itertools.islice(found, len(runs))) for label, runs in groups.items()}


def elsewhere(
    chapter: str, profile: str, runs: Callable[[Parameters], dict[str, list[Run]]]
) -> tuple[str, Groups]:
    """The other of the profiles quick and laptop, and what is stored of its runs by label; says so where nothing is.

    `runs` makes them of that profile's parameters: the defaults of this notebook, its file of the chapter.
    """
    other = "quick" if profile == "laptop" else "laptop"
    file = f"params/{other}/{chapter}.yaml"
    declared = next(source for source in get_ipython().user_ns["In"] if _assigned(source))
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(declared).body}
    there = Parameters(**values | yaml.safe_load(project_folder(file).read_text()))
    stored = {
        label: [h for run in of_one if (h := Store().get(run))] for label, of_one in runs(there).items()
    }
    stored = {label: histories for label, histories in stored.items() if histories}
    if not stored:
        say(f"None is stored: `papermill chapters/{chapter}.ipynb out.ipynb -f {file}` trains them.")
    return other, stored


def slopes(histories: list[History]) -> pd.DataFrame:
    """Slope and R² of NC1, NC2 and NC3 (rows) on log10 NC0 as text, at each learning rate and for all (`analysis.regression`)."""
    rows = {}
    for column in ("nc1", "nc2", "nc3"):
        fits = regression(histories, column).iterrows()
        rows[figures.LABELS[column]] = {label: f"{fit.beta:+.3f} (R² {fit.r2:.2f})" for label, fit in fits}
    return pd.DataFrame.from_dict(rows, orient="index")


def say(*lines: str) -> None:
    """Displays Markdown: a paragraph, or a list where there are several lines."""
    display(Markdown(lines[0] if len(lines) == 1 else "\n".join(f"- {line}" for line in lines)))


def table(frame: pd.DataFrame, formats="{:.3g}", index: bool = True, size: int = 85):
    """A table for a page: numbers by `formats` (one for all, or by column), in `size` percent of the text's, without breaks."""
    if isinstance(formats, str):
        formats = dict.fromkeys(frame.select_dtypes("number"), formats)
    styled = frame.style.format(formats, na_rep="–")
    styled = styled.set_table_attributes(f'style="font-size: {size}%; white-space: nowrap"')
    return styled if index else styled.hide(axis="index")
