"""What every notebook repeats: its parameters checked, its runs, its sentences and tables."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
import numbers
import re
from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import yaml
from IPython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import Markdown, display

from ncutils.analysis import Groups, once, regression, stored_grid, with_gauge_fixed
from ncutils.book import figures
from ncutils.book.captions import caption as caption  # for the notebooks
from ncutils.book.style import METRICS as METRICS  # for the notebooks
from ncutils.files import project_folder
from ncutils.optimizers import NAMES, RULES, find_rule
from ncutils.runs import History, Run, shorten, unknown
from ncutils.store import Store
from ncutils.sweeps import train_all


class Parameters(SimpleNamespace):
    """A chapter's parameters by name, and what most chapters make of them."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of each of `rules` with coupled and with decoupled decay: the paper's where it has them."""
        names = {rule: [n for n, (r, _) in NAMES.items() if r == rule] for rule in self.rules}
        return [tuple(of_rule) or (rule, f"{rule}W") for rule, of_rule in names.items()]

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
        return {n: [self.run(n, decay, **one) for decay in of for one in each] for n, of in wd.items()}


def parameters() -> Parameters:
    """The parameters that the notebook's cell of parameters declares, with the values they have now, checked; sets the
    figures' style. What YAML or the command line gives as text or alone where the chapter has a number or a list becomes one.
    """
    names = get_ipython().user_ns
    checked = check_parameters(names["In"], names)
    names.update(checked)
    figures.set_style()
    return Parameters(**checked)


def check_parameters(cells: list[str], values: dict) -> dict:
    """The parameters that a notebook declares, with their `values` in the form of their defaults.

    `cells` is IPython's `In`: the source of the cells executed so far, in whatever order. The declaring one is told by
    `profile`, which every chapter's has. papermill puts what it was given into a cell of its own, headed "# Parameters"; a
    name there that the chapter does not declare is refused: a mistyped name is an error, not a default.
    Raises ValueError in one sentence that names the parameter.
    """
    declared = _declared(cells)
    injected = [source for source in cells if source.startswith(_INJECTED)]
    for name in _assigned(injected[-1]) if injected else ():
        if name not in declared and not name.startswith("PAPERMILL_"):  # papermill's --inject-paths
            raise ValueError(unknown(name, declared, "this chapter takes"))
    checked = {}
    for name, expression in declared.items():
        field = Run.model_fields.get(name)
        if values[name] is None and field and field.default is None:  # n_train: all
            checked[name] = None
            continue
        try:
            checked[name] = _in_form_of(_default(name, expression, values[name]), values[name])
            _check_range(name, checked[name])
        except ValueError as error:
            raise ValueError(f"{name} = {shorten(values[name])} is not allowed: {error}") from None
    return checked


def parameters_of(file: str) -> Parameters:
    """The parameters of the chapter that a parameter file of the project is for: what its notebook declares, and the file's.

    Raises ValueError in one sentence that names the file, or its parameter.
    """
    path = project_folder(file)
    chapter = project_folder(f"chapters/{path.stem}.ipynb")
    if not (path.is_file() and chapter.is_file()):
        raise ValueError(
            f"{file!r} is not allowed: it must be a chapter's parameter file, params/PROFILE/CHAPTER.yaml"
        )
    cells = ["".join(cell["source"]) for cell in json.loads(chapter.read_text("utf-8"))["cells"]]
    try:
        given = yaml.safe_load(path.read_text("utf-8")) or {}
        if not isinstance(given, dict):
            raise ValueError("it must be lines of NAME: VALUE")
        injected = "\n".join([_INJECTED, *(f"{name} = {value!r}" for name, value in given.items())])
        declared = _declared(cells)
        values = {name: ast.literal_eval(value) for name, value in declared.items()} | given
        return Parameters(**check_parameters([*cells, injected], values))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None


_INJECTED = "# Parameters"  # papermill's heading


def _declared(cells: list[str]) -> dict[str, ast.expr]:
    """The parameters that the notebook's own cell declares, with what stands there."""
    assigned = [_assigned(source) for source in cells if not source.startswith(_INJECTED)]
    declaring = [names for names in assigned if "profile" in names]
    if not declaring:
        raise ValueError(
            "the parameters are not known: run the notebook's first cell of code, which declares them"
        )
    return max(reversed(declaring), key=len)  # one that was edited and run again counts as it is now


# what has names of its own, which are not the cell's
_OWN_NAMES = (
    ast.FunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


def _assigned(source: str) -> dict[str, ast.expr]:
    """The names to which a cell gives values, with the expression of a plain statement, or for any other their own name; none
    of a cell that is not Python. Magics are passed over."""
    try:
        cell = ast.parse(TransformerManager().transform_cell(re.sub(r"\A\s*%%.*\n", "", source)))
    except SyntaxError:
        return {}
    plain, names, left = {}, [], [cell]
    while left:
        node = left.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node)
        only_annotated = isinstance(node, ast.AnnAssign) and not node.value
        if not only_annotated and not isinstance(node, _OWN_NAMES):
            left += reversed([*ast.iter_child_nodes(node)])  # in the order in which they stand
    for s in cell.body:
        if isinstance(s, ast.Assign | ast.AnnAssign) and s.value:
            targets = s.targets if isinstance(s, ast.Assign) else [s.target]
            plain |= {t.id: s.value for t in targets if isinstance(t, ast.Name)}
    return {n.id: n for n in names} | plain


def _default(name: str, expression: ast.expr, value):
    """The value that the cell gives a parameter; the present one where a reader has put an expression there."""
    try:
        default = ast.literal_eval(expression)
    except ValueError:
        return value
    field = Run.model_fields.get(_FIELDS.get(name, name))
    return float(default) if field and field.annotation is float and type(default) is int else default


def _in_form_of(default, value):
    """A parameter's value as its default is: number, text, list or mapping. A number may come as text (YAML reads 1e-3 so),
    and one number for a list of them. Where the default is None, text and whole numbers are taken."""
    for kind, words in ((bool, "True or False"), (str, "text")):
        if isinstance(default, kind):
            if not isinstance(value, kind):
                raise ValueError(f"it must be {words}")
            return value
    if isinstance(default, int | float):
        return _number(value, whole=isinstance(default, int))
    if isinstance(default, list) and default:
        return _list(default, value)
    if isinstance(default, dict):
        if not isinstance(value, dict) or not default.keys() <= value.keys() <= set(NAMES):
            needed = f", {' and '.join(default)} among them" if default else ""
            raise ValueError(f"it must be a mapping of optimizers' names to lists of numbers{needed}")
        return {name: _list([0.0], decays) for name, decays in value.items()}
    if default is not None:  # a reader's own, such as an array
        return value
    with contextlib.suppress(ValueError):
        return _number(value, whole=True)
    if value is not None and not isinstance(value, str):
        raise ValueError("it must be text, a whole number or None")
    return value


def _list(default: list, value) -> list:
    if isinstance(default[0], list):  # of lists of one length
        n = len(default[0])
        if not (
            isinstance(value, list) and value and all(isinstance(v, list) and len(v) == n for v in value)
        ):
            raise ValueError(f"it must be a list of lists of {n} numbers")
        return [_list([0.0], v) for v in value]
    if isinstance(default[0], str):
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise ValueError(
                "it must be a list of names, which papermill's -p cannot give: -y '{NAME: [a, b]}' can"
            )
        for rule in value:
            _known_rule(rule)
        return value
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("it must hold a number")
    return [_number(v) for v in values]


def _known_rule(rule: str) -> None:
    try:
        RULES.get(rule) or find_rule(rule)
    except ValueError as error:
        raise ValueError(str(error).partition("is not allowed: ")[2]) from None


def _number(value, whole: bool = False):
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
    kind = "a whole number" if whole else "a number"
    # `math.isfinite` fails for a whole number that no float holds
    plain = isinstance(number, numbers.Real) and not isinstance(number, bool) and abs(number) < 1e300
    if not plain or (whole and number != int(number)):
        raise ValueError(f"it must be {kind}")
    return int(number) if whole else number


# of parameters that are no fields of Run: the field whose range they have, or their own
_FIELDS = {"lr_sgd": "lr", "lr_heat": "lr", "epochs_before": "epochs"} | dict.fromkeys(
    ("wd", "wd_sweep", "wd_choices"), "coupled_wd"
)
_RANGES = {"K": (2, 10_000), "steps": (1, 10_000_000), "n_seeds": (1, 10_000)}
_RANGES |= {"n_images": (0, 60_000), "shares": (0, 1)}


def _check_range(name: str, value) -> None:
    """Raises ValueError where a number, or one in a list or mapping, is out of range."""
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            _check_range(name, part)
        return
    least, most = _RANGES.get(name, (-math.inf, math.inf))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not least <= value <= most:
        raise ValueError(f"it must lie between {least} and {most:,}")
    if (known := _FIELDS.get(name, name)) in Run.model_fields:
        try:
            Run(**{known: value})
        except ValueError as error:
            raise ValueError(str(error).partition("is not allowed: ")[2]) from None


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


def protocol(**fields) -> dict[str, Groups]:
    """The stored runs by the paper's own protocol (the grids of params/protocol) with these values of fields, by width, the
    largest first ("width 64", ...), and by optimizer; gauge-fixed metrics among the columns of their frames."""
    by_width: dict[int, Groups] = {}
    for path in map(project_folder, ("params/protocol/grid.yaml", "params/protocol/width64.yaml")):
        for name, histories in stored_grid(path, **fields)[0].items():
            for h in histories:
                by_width.setdefault(h.run.width, {}).setdefault(name, []).append(h)
    return {f"width {width}": with_gauge_fixed(by_width[width]) for width in sorted(by_width, reverse=True)}


def trained(groups: dict, device: str | None = None) -> dict:
    """The Histories of labelled lists of Runs, read or trained side by side (`sweeps.train_all`)."""
    found = iter(train_all([run for runs in groups.values() for run in runs], device=device))
    return {label: list(itertools.islice(found, len(runs))) for label, runs in groups.items()}


def elsewhere(
    chapter: str, profile: str, runs: Callable[[Parameters], dict[str, list[Run]]]
) -> tuple[str, Groups]:
    """The other of the profiles quick and laptop, and what is stored of its runs by label; says so where nothing is.

    `runs` makes them of the chapter's parameters in that profile (`parameters_of`).
    """
    other = "quick" if profile == "laptop" else "laptop"
    file = f"params/{other}/{chapter}.yaml"
    there = runs(parameters_of(file))
    found = {label: [*filter(None, map(Store().get, of_one))] for label, of_one in there.items()}
    stored = {label: histories for label, histories in found.items() if histories}
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


def table(frame: pd.DataFrame, formats="{:.3g}", index: bool = True, size: int = 85, name: str = ""):
    """A table for a page: numbers by `formats` (one for all, or by column), in `size` percent of the text's, without breaks;
    `name`, such as "Table 2" of the paper, is what links to it say."""
    if isinstance(formats, str):
        formats = dict.fromkeys(frame.select_dtypes("number"), formats)
    styled = frame.style.format(formats, na_rep="–")
    styled = styled.set_table_attributes(f'class="dataframe" style="font-size: {size}%; white-space: nowrap"')
    counted = [c for c in frame if frame[c].astype(str).str.match(r"[-+−≫<(\d–]|nan$").all()]  # or words
    styled = styled.set_properties(subset=(slice(None), counted), **{"text-align": "right"})
    if name:
        styled = styled.set_caption(f'<span id="{name.lower().replace(" ", "-")}">{name}</span>')
    return styled if index else styled.hide(axis="index")
