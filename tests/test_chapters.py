"""Chapters executed by papermill, with real training at the smallest scale; parameter files; the book's contents."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from filelock import FileLock
from nbformat import v4

from ncutils import analysis
from ncutils.book.pages import check_parameters, parameters_of
from ncutils.book.published import FIGURE14, TABLE1_SETTING
from ncutils.optimizers import OPTIMIZERS
from ncutils.store import Store, read_grid
from ncutils.sweeps import train_all
from ncutils.training import Run

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
SMALL = {"epochs": 12, "width": 4}
# Chapters that are run by the paper's profile, made small, where its data are: what is trained must be what was released
PAPERS = ["01_neural_collapse", "03_adamw", "05_interpolation", "06_theorem_3_1", "13_more_epochs"]
FASHIONMNIST = Path(os.environ.get("NCUTILS_DATA", ""), "FashionMNIST", "raw")
# Figures outside the explorer that a chapter shows at least, without stored runs
FIGURES = {
    "01_neural_collapse": 3,
    "03_adamw": 5,
    "06_theorem_3_1": 3,
    "07_theorem_3_3": 2,
    "08_theorem_3_4": 2,
}
FIGURES |= {"09_sign_descent": 1, "10_ufm": 1, "17_errata": 0, "02_weight_decay": 4, "05_interpolation": 1}
FIGURES |= {"11_nc_in_practice": 1, "12_regression": 3, "13_more_epochs": 2, "14_six_settings": 3}
FIGURES |= {"04_explore": 0, "15_vit": 5, "16_imagenet": 2, "18_your_model": 2, "19_your_optimizer": 1}
FIGURES |= {
    "20_tested": 0,
    "21_costs": 1,
    "22_gauge": 5,
    "23_which_optimizers": 3,
    "24_paper_and_code": 2,
    "26_playground": 0,
}
# Widgets that a chapter shows
EXPLORERS = dict.fromkeys(
    ("06_theorem_3_1", "07_theorem_3_3", "08_theorem_3_4", "09_sign_descent", "10_ufm"), 1
)
EXPLORERS |= {"04_explore": 2, "14_six_settings": 1, "22_gauge": 1, "23_which_optimizers": 1}
EXPLORERS["26_playground"] = 1
# For the chapters that read a grid; the smallest decay that leaves something to see in 12 epochs
GRID = """
common: {epochs: 12, width: 4}
entries:
  - {arch: [resnet9, mlp], optimizer: [SGD, SGDW], lr: 0.0679, wd: [0, 0.01, 0.05]}
  - {arch: [resnet9, mlp], optimizer: [Adam, Signum, AdamW, SignumW], lr: 0.005, wd: [0, 0.01, 0.05]}
"""
INTERVENTIONS = """
common: {epochs: 12, width: 4, lr: 0.005}
entries:
  - {optimizer: [Adam, Signum], wd: 0.05, centre_head: [never, step]}
  - {optimizer: [AdamW, SignumW], wd: 5, centre_head: [never, step]}
  - {optimizer: Adam, wd: 0.05, head_coupled_wd: 0, head_decoupled_wd: 5}
"""
CHARTS = {"02_weight_decay": 1, "12_regression": 1}
CHART = "application/vnd.vegalite.v6+json"
WIDGET = "application/vnd.jupyter.widget-view+json"


def papermill(chapter, out, *options, workers=1, **parameters):
    """The README's command, in a process of its own, with so many cores for what it trains."""
    command = [str(Path(sys.executable).with_name("papermill")), str(chapter), str(out), *options]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": str(workers)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def declared(chapter) -> dict:
    """The chapter's parameters with their defaults."""
    cells = nbformat.read(chapter, as_version=4).cells
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(
            next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
        ).body
        for target in statement.targets
    }


def outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(path):
    found = []
    for output in outputs(path):
        data = output.get("data", {})
        found += [output.get("text", ""), data.get("text/markdown", ""), data.get("text/html", "")]
    return "\n".join(found)


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory, worker_id):
    """A folder with the runs of GRID and INTERVENTIONS, trained once for all chapters that read them."""
    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary if worker_id == "master" else temporary.parent) / "small_runs"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            for name, grid in (("grid", GRID), ("interventions", INTERVENTIONS)):
                (folder / f"{name}.yaml").write_text(grid)
                runs = [run for _, run in read_grid(folder / f"{name}.yaml")]
                # the other worker waits for them, too
                train_all(runs, Store(folder, folder / "none"), "cpu", workers=2, progress=False)
            (folder / "done").touch()
    return folder


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_runs_and_leaves_a_clean_notebook(chapter, tmp_path, request):
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "interventions.yaml").write_text(INTERVENTIONS)
    asked = {*declared(chapter)}
    left_out = []
    if "train" in asked and chapter.stem != "03_adamw":
        small_runs = request.getfixturevalue("small_runs")
        # the chapter trains what is missing: a run of each grid that it reads
        left_out = [read_grid(tmp_path / f"{n}.yaml")[3][1] for n in {"grid", "interventions"} & asked]
        shutil.copytree(small_runs, Store().folder, ignore=shutil.ignore_patterns("*.yaml", "done"))
        for run in left_out:
            (Store().folder / f"{run.hash}.parquet").unlink()
    small = SMALL | {"epochs_before": 12, "n_train": 400, "image_size": 16, "train": True}
    file = ROOT / "params" / "paper" / f"{chapter.stem}.yaml"
    of_the_paper = ("-f", str(file)) if chapter.stem in PAPERS and FASHIONMNIST.is_dir() else ()
    if of_the_paper:
        small |= {"n_train": 128, "n_test": 100}
    small["grid"] = tmp_path / "grid.yaml"
    if chapter.stem == "16_imagenet":
        small["n_train"] = 40  # of fifty layers
    if chapter.stem == "20_tested":
        small["n_seeds"] = 2
    small["interventions"] = tmp_path / "interventions.yaml"
    small = {name: value for name, value in small.items() if name in asked}
    if small:
        out = tmp_path / "out.ipynb"
        done = papermill(chapter, out, *of_the_paper, **small)
        assert done.returncode == 0, done.stderr[-2000:]
    else:  # it trains nothing: in the book it ran just so
        out = request.getfixturevalue("quick_book") / "chapters" / chapter.name
    found = outputs(out)
    assert sum("image/svg+xml" in o.get("data", {}) for o in found) >= FIGURES[chapter.stem]
    assert sum(WIDGET in o.get("data", {}) for o in found) == EXPLORERS.get(chapter.stem, 0)
    assert sum(CHART in o.get("data", {}) for o in found) == CHARTS.get(chapter.stem, 0)
    assert out.stat().st_size < 3e6
    # no debris: no progress bar, no warning, nothing on stderr
    assert not [o for o in found if o.output_type == "stream" and o.name == "stderr"]
    text = text_of(out)
    assert not re.search(r"\d(it|epoch|run)/s|\d%\|", text) and str(ROOT) not in text
    runs = [h.run for h in Store().histories()]
    assert all(run.epochs == 12 and run.width == 4 for run in runs)
    assert all(run in Store() for run in left_out)
    if of_the_paper:
        assert len(runs) >= (1 if chapter.stem == PAPERS[0] else 6)
        expected = Run.released("SGD", 0, dataset=runs[0].dataset, seed=3141)
        fields = ("dataset", "net", "fit", "scale", "augment", "seed")
        assert all(getattr(run, name) == getattr(expected, name) for run in runs for name in fields)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_papermill_understands_every_parameter(chapter):
    """Papermill reads the parameters' cell line by line and passes over a line whose comment holds an equals sign."""
    from papermill.inspection import inspect_notebook

    assert set(inspect_notebook(str(chapter))) == set(declared(chapter))


def test_chapter_03_trains_the_six_optimizers_once(tmp_path):
    chapter = ROOT / "chapters" / "03_adamw.ipynb"
    assert papermill(chapter, tmp_path / "a.ipynb", workers=2, wd=5, **SMALL).returncode == 0
    histories = {h.run.optimizer: h for h in Store().histories()}
    assert set(histories) == {"SGD", "SGDW", "Adam", "AdamW", "Signum", "SignumW"}
    assert histories["AdamW"].run.decoupled_wd == histories["Adam"].run.coupled_wd == 5
    finished = {name: h.info["finished"] for name, h in histories.items()}
    assert papermill(chapter, tmp_path / "b.ipynb", wd=5, **SMALL).returncode == 0
    assert finished == {h.run.optimizer: h.info["finished"] for h in Store().histories()}
    drawn = "\n".join(
        o["metadata"].get("figure", {}).get("provenance", "")
        for o in outputs(tmp_path / "b.ipynb")
        if "image/svg+xml" in o.get("data", {})
    )
    assert (
        "Profile default: resnet9, width 4, digits, 1,437 training images, 12 epochs, lr 0.001, 0.0679"
        in drawn
    )
    assert "Seed 0. 6 runs" in drawn


def test_a_number_may_stand_for_a_list_of_one(tmp_path):
    small = {"epochs": 5, "n_train": 100, "width": 1}
    done = papermill(ROOT / "chapters" / "10_ufm.ipynb", tmp_path / "out.ipynb", lr=0.3, wd=0.05, **small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {(h.run.lr, h.run.wd) for h in Store().histories()} == {(0.3, 0.05)}


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"wdd": 5}, "ValueError: unknown parameter 'wdd': did you mean 'wd'? this chapter takes"),
        ({"dataset": "cifar"}, "ValueError: dataset = 'cifar' is not known: use one of digits"),
    ],
)
def test_bad_parameters_are_refused(parameters, sentence, tmp_path):
    done = papermill(ROOT / "chapters" / "03_adamw.ipynb", tmp_path / "out.ipynb", **parameters)
    assert done.returncode != 0 and sentence in done.stderr
    assert not Store().histories()


def test_a_grid_without_valid_runs_has_no_line():
    cells = nbformat.read(ROOT / "chapters/12_regression.ipynb", as_version=4).cells
    (source,) = (c.source for c in cells if "runs = analysis.valid(groups)" in c.source)
    pages = SimpleNamespace(grid_runs=lambda *_, **__: {"SGD": [], "Adam": []})
    values = declared(ROOT / "chapters/12_regression.ipynb") | {"analysis": analysis, "pages": pages}
    with pytest.raises(ValueError, match="^grid = .* is not allowed: .* 0 are valid, and a line takes three"):
        exec(source, values)


def test_one_seed_has_no_spread():
    cells = nbformat.read(ROOT / "chapters/20_tested.ipynb", as_version=4).cells
    (source,) = (c.source for c in cells if "if n_seeds" in c.source)
    refusal = "if n_seeds" + source.partition("if n_seeds")[2]
    exec(refusal, {"n_seeds": 2})
    with pytest.raises(ValueError, match="^n_seeds = 1 is not allowed: .* it must be 2 or more"):
        exec(refusal, {"n_seeds": 1})


def checked(*cells: str) -> dict:
    """What a notebook whose cells were executed in this order takes for its parameters."""
    values: dict = {}
    for cell in cells:
        exec(re.sub(r"^(%.*|.*\?)$", "", cell, flags=re.MULTILINE), values)  # without magics
    return check_parameters(["", *cells], values)


DECLARED = 'width = 8\nlr = 0.1\nwd_sweep = {}\nprofile = "default"'


def test_check_parameters_knows_only_papermills_cell():
    checked(DECLARED, "# Parameters\nlr = 0.2\n", "typo = 3")
    checked(DECLARED, "widht = 3")  # a reader's own variable
    with pytest.raises(ValueError, match="unknown parameter 'widht': did you mean 'width'"):
        checked(DECLARED, "# Parameters\nwidht = 3\n")
    with pytest.raises(ValueError, match="'typo'.*this chapter takes width, lr, wd_sweep, profile"):
        checked(DECLARED + "\nnever: int", "# Parameters\ntypo = 3\n")  # a name that has no value


@pytest.mark.parametrize(
    "cells",
    [
        ["n = 3", DECLARED, "# Parameters\nlr = 0.2"],  # another cell first
        [
            DECLARED,
            "# Parameters\nlrr = 0.2",
            "# Parameters\nlr = 0.2",
        ],  # the injected one mended and run again
        [DECLARED, "# Parameters\nlr = 0.5", DECLARED + "\nx = 1", "# Parameters\nlr = 0.2"],
        [DECLARED, "# Parameters\nlr = 0.2\nprint(lr)"],
        [DECLARED, 'lr, profile = 0.2, "mine"', "profile = 'mine'\nlr = 0.2"],  # its heading removed
        [DECLARED + "\nprint(width)", "lr = 0.2"],
        ['width, lr = 8, 0.2\nwd_sweep: dict = {}\nprofile = "default"'],  # as a reader may write it
        ["%matplotlib inline\n" + DECLARED + "\nif width:\n    lr = 0.2\nwidth?"],
        ["%%time\n" + DECLARED, "lr = 0.2"],
        [
            DECLARED,
            '# Parameters\nPAPERMILL_INPUT_PATH = "in.ipynb"\nPAPERMILL_OUTPUT_PATH = "out.ipynb"\nlr = 0.2',
        ],
    ],
)
def test_parameters_are_those_of_their_cell_in_whatever_order_cells_are_run(cells):
    found = checked(*cells)
    assert found["lr"] == 0.2 and found["width"] == 8 and set(found) >= {"width", "lr", "wd_sweep", "profile"}


def test_an_expression_in_the_cell_of_parameters_is_taken_as_it_is():
    cell = "lr = 10 ** -3\nwd = 5\nmomentum = [b / 10 for b in range(3)]\nn = (1, 2)\nprofile = 'mine'"
    found = checked(cell, "# Parameters\nwd = 0.5")
    assert found == {"lr": 10**-3, "wd": 0.5, "momentum": [0, 0.1, 0.2], "n": (1, 2), "profile": "mine"}


def test_a_notebook_whose_cell_of_parameters_was_not_run_says_so():
    with pytest.raises(ValueError, match="run the notebook's first cell of code"):
        checked("# Parameters\nlr = 0.2", "n = 3")


# what a parameter file or the command line may hold instead of a default of this kind, and what becomes of it
TAKEN = {
    float: [("1e-3", 0.001), ("5", 5), (5, 5), ("1E-1", 0.1)],
    int: [("1e2", 100), (100.0, 100), ("100", 100)],
    list: [(0.3, [0.3]), ("1e-3", [0.001]), (["1e-3", 0.1], [0.001, 0.1])],
    type(None): [("100", 100), (100.0, 100), (None, None)],
    "names": [(["lion"], ["lion"]), (["adam", "muon-all"], ["adam", "muon-all"])],
}
REFUSED = {
    float: ["high", None, True, [], {}, math.nan, math.inf, "nan", "inf", "0,1", ""],
    int: ["1e-3", 2.5, True, None, [8], math.nan, "many"],
    list: ["high", True, None, [], {}, [True], ["high"], [None], [math.inf], [[]]],
    dict: [[0.1], 0.1, "x", None, {"Adma": [0.1]}, {"Adam": ["high"], "AdamW": [0.1], "SGD": [0.1]}],
    bool: [1, 0, "true", "false", None],
    str: [1, 0.5, None, ["digits"]],
    type(None): [True, [1], {}, 1.5],
    "names": ["[adam, lion]", "adam", 0.3, True, None, [], {}, [1], [None], ["Lion"], ["adam", "lions"]],
}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
@pytest.mark.counts("bad inputs refused")
def test_every_parameter_of_every_chapter_is_read_as_its_kind_or_refused_before_anything_runs(chapter):
    cells = nbformat.read(chapter, as_version=4).cells
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    defaults = declared(chapter)
    assert check_parameters([source], defaults) == defaults
    for name, default in defaults.items():
        nested = isinstance(default, list) and isinstance(default[0], list)
        kind = "names" if isinstance(default, list) and isinstance(default[0], str) else type(default)
        for given, wanted in TAKEN.get(kind, []) if not nested else []:
            if name == "momentum" and wanted == 5:  # out of its range
                continue
            found = check_parameters([source], defaults | {name: given})[name]
            assert found == wanted and (found is None or not isinstance(found, str)), (name, given)
            if isinstance(default, int):
                assert type(found) is int
        for given in REFUSED[kind]:
            if given is None and name in ("n_train", "n_test", "image_size"):
                assert check_parameters([source], defaults | {name: None})[name] is None
                continue
            with pytest.raises(
                ValueError, match=f"^{name} = .* is not allowed: (it must|did you mean) "
            ) as error:
                check_parameters([source], defaults | {name: given})
            assert "\n" not in str(error.value)


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("chapter", "name", "value"),
    [
        ("07", "K", 1),
        ("07", "steps", 0),
        ("07", "steps", "1e12"),
        ("08", "wd", -1),
        ("10", "lr", [0.1, 0]),
        ("02", "lr_heat", 0),
        ("03", "n_seeds", 0),
        ("03", "wd_sweep", {"Adam": [0, -1]}),
        ("05", "shares", [0, 1.5]),
        ("09", "wd_choices", -0.1),
        ("13", "epochs_before", 0),
        ("13", "sgd", [0.9, 0.1]),
        ("13", "sgd", [[0.9]]),
        ("13", "wd", {"Adam": [0]}),
        ("24", "n_images", -1),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_runs(chapter, name, value):
    path = next((ROOT / "chapters").glob(f"{chapter}_*.ipynb"))
    cells = nbformat.read(path, as_version=4).cells
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    with pytest.raises(ValueError, match=f"^{name} = .* is not allowed: it must "):
        check_parameters([source], declared(path) | {name: value})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "is not allowed: it must be a chapter's parameter file"),
        ("wd: [1", "while parsing"),
        ("- 3", "it must be lines of NAME: VALUE"),
        ("wdd: 3", "unknown parameter 'wdd': did you mean 'wd'?"),
        ("wd: much", "wd = 'much' is not allowed: it must be a number"),
    ],
)
@pytest.mark.counts("bad inputs refused")
def test_another_chapters_parameter_file_is_checked_as_its_own_are(tmp_path, text, sentence):
    file = tmp_path / "03_adamw.yaml"
    file.write_text("wd: 1e-3", "utf-8")
    found = parameters_of(str(file))
    assert (found.wd, found.seed, found.wd_sweep) == (
        1e-3,
        0,
        declared(ROOT / "chapters/03_adamw.ipynb")["wd_sweep"],
    )
    if text is None:
        file = file.rename(tmp_path / "33_adamw.yaml")
    else:
        file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        parameters_of(str(file))
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
@pytest.mark.parametrize("profile", ["quick", "laptop", "paper"])
def test_every_chapter_has_a_file_of_known_parameters_in_each_profile(chapter, profile):
    cells = nbformat.read(chapter, as_version=4).cells
    declaring = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    given = yaml.safe_load((ROOT / "params" / profile / f"{chapter.stem}.yaml").read_text("utf-8"))
    assert given["profile"] == profile
    found = checked(
        declaring, "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    )
    assert given.items() <= found.items()
    values = declared(chapter) | given
    first = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
    Run(**{name: value for name, value in first.items() if name in Run.model_fields})


def test_paper_profile_is_the_papers_setting():
    given = yaml.safe_load((ROOT / "params" / "paper" / "03_adamw.yaml").read_text("utf-8"))
    for name in ("dataset", "width", "epochs", "momentum", "wd", "lr_sgd"):
        assert given[name] == TABLE1_SETTING[name]
    longer = yaml.safe_load((ROOT / "params" / "paper" / "13_more_epochs.yaml").read_text("utf-8"))
    assert tuple(map(tuple, longer["sgd"])) == FIGURE14
    vit = yaml.safe_load((ROOT / "params" / "paper" / "15_vit.yaml").read_text("utf-8"))
    theirs = Run.released("SGD", 0, arch="vit", dataset="CIFAR10", width=64, seed=3141, epochs=200, lr=0.001)
    assert {name: vit[name] for name in ("fit", "scale", "seed", "width", "epochs", "lr", "dataset")} == {
        name: getattr(theirs, name) for name in ("fit", "scale", "seed", "width", "epochs", "lr", "dataset")
    }
    assert vit["net"] == f"{theirs.net}-no-dropout" and vit["lr_sgd"] == vit["lr"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_that_shows_runs_says_first_which_protocol_they_have(chapter):
    """Before any code. Chapter 21 asks what runs cost."""
    first, *others = nbformat.read(chapter, as_version=4).cells
    code = "\n".join(cell.source for cell in others if cell.cell_type == "code")
    shows = re.search(r"pages\.(trained|grid_runs)\(|train_all\(", code)
    if shows and chapter.stem != "21_costs":
        assert "\n\n**Protocol.** " in first.source and "{cite}`released`" in first.source


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_chapters_are_kept_without_outputs(chapter):
    notebook = json.loads(chapter.read_text("utf-8"))
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in notebook["cells"])
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_code_cells_are_short():
    """What a page shows is read: no cell of code over 25 lines, half of them of 8 or fewer."""
    cells = [c for path in CHAPTERS for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    lines = sorted(len(c.source.splitlines()) for c in cells)
    assert lines[-1] <= 25 and lines[len(lines) // 2] <= 8, lines[-5:]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_ends_with_what_to_read_next(chapter):
    last = nbformat.read(chapter, as_version=4).cells[-1].source
    (text,) = re.findall(r"^\*\*Next\.\*\* (.*)$", last, re.MULTILINE)
    links = re.findall(r"\]\(([\w.]+)\)", text)
    assert links and all((ROOT / "chapters" / link).exists() and link != chapter.name for link in links)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_no_prose_is_taken_for_a_comment(chapter):
    """MyST drops a line that begins with a percent sign."""
    prose = [c.source for c in nbformat.read(chapter, as_version=4).cells if c.cell_type == "markdown"]
    assert not [line for text in prose for line in text.splitlines() if line.startswith("%")]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_exercises_with_solutions_one_of_which_runs(chapter):
    if chapter.stem in ("20_tested", "21_costs"):
        return
    cells = nbformat.read(chapter, as_version=4).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    tasks = re.findall(r"^```\{exercise\} .+\n:label: (ex-[\w-]+)$", prose, re.MULTILINE)
    solved = re.findall(r"^```\{solution(?:-start)?\} (ex-[\w-]+)\n:class: dropdown$", prose, re.MULTILINE)
    assert 2 <= len(tasks) == len(set(tasks)) and tasks == solved
    starts = [i for i, c in enumerate(cells) if c.cell_type == "markdown" and "{solution-start}" in c.source]
    assert starts and all(cells[i + 1].cell_type == "code" for i in starts)


def test_contents_and_first_page_name_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    files = {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert {f"chapters/{c.stem}" for c in CHAPTERS} <= files
    assert all((ROOT / f"{f}.ipynb").exists() or (ROOT / f"{f}.md").exists() for f in files)
    rows = [r for r in (ROOT / "chapters/intro.md").read_text("utf-8").splitlines() if r.startswith("| [")]
    assert all(any(f"]({c.name})" in row for row in rows) for c in CHAPTERS)


@pytest.fixture
def forked(tmp_path):
    """A project of one chapter that has been given an address, and the address."""
    (tmp_path / "chapters").mkdir()
    for name in ("Makefile", "_config.yml", "chapters/03_adamw.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    address = f"https://github.com/owner/{tmp_path.name}"
    for given in ("https://github.com/owner/another", address):
        fork = [sys.executable, ROOT / "tools/fork.py", given, tmp_path / "chapters/03_adamw.ipynb"]
        subprocess.run(fork, check=True, capture_output=True)
    return tmp_path, address


def test_launch_buttons_come_with_a_repository_alone(tmp_path, forked):
    def config(*options, project=ROOT):
        make = ["make", f"{tmp_path}/site/_config.yml", f"SITE={tmp_path}/site", *options]
        done = subprocess.run(make, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return yaml.safe_load((tmp_path / "site" / "_config.yml").read_text("utf-8"))

    assert not {"repository", "launch_buttons"} & set(config())
    given = config("REPOSITORY=https://github.com/owner/name")
    assert given["repository"] == {"url": "https://github.com/owner/name", "branch": "main"}
    assert set(given["launch_buttons"]) == {"binderhub_url"}  # in Colab its chapters would lack the project
    given = config("REPOSITORY=https://github.com/owner/name", project=forked[0])
    assert set(given["launch_buttons"]) == {"binderhub_url", "colab_url"}


def test_a_forks_chapter_fetches_its_project_where_there_is_none(forked):
    """Its first cell, run with no package at all but stand-ins for git and pip, which write down what they are asked for."""
    folder, address = forked
    cells = nbformat.read(folder / "chapters/03_adamw.ipynb", as_version=4).cells
    first, second = [c for c in cells if c.cell_type == "code"][:2]
    assert "remove-cell" in first.metadata["tags"] and "parameters" in second.metadata["tags"]
    assert sum("fetches-project" in c.metadata.get("tags", []) for c in cells) == 1
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(
        "import sys; open('asked', 'a').write(f'pip {sys.argv[1:]}\\n')"
    )
    git = folder / "git"
    git.write_text(f"#!/bin/sh\necho git $* >> asked\nmkdir -p project\ncp -r {ROOT}/ncutils project/\n")
    git.chmod(0o755)
    code = first.source + "\nimport ncutils, os; print(ncutils.__file__, os.getcwd())"
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "PYTHONPATH": str(folder)}
    alone = [sys.executable, "-S", "-c", code]  # without the packages of this environment
    done = subprocess.run(alone, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{folder}/project/ncutils/__init__.py", f"{folder}/project"]
    asked = (folder / "asked").read_text("utf-8").splitlines()
    assert asked == [
        f"git clone --depth 1 {address} project",
        "pip ['install', '--quiet', '--editable', 'project[book]']",
    ]
    here = [
        sys.executable,
        "-c",
        first.source + "\nimport os; print(os.getcwd())",
    ]  # where the project is at hand
    assert subprocess.run(here, cwd=folder, capture_output=True, text=True, check=True).stdout.strip() == str(
        folder
    )


def test_one_sentence_is_seen_without_running_the_chapter(tmp_path):
    """The rule behind `make book`: new prose keeps the outputs, new code does not."""
    sys.path.insert(0, str(ROOT / "tools"))
    from execute import new_prose

    chapter, out = nbformat.read(ROOT / "chapters/19_your_optimizer.ipynb", 4), tmp_path / "out.ipynb"
    ran = nbformat.from_dict(chapter)
    at = next(i for i, c in enumerate(ran.cells) if "parameters" in c.metadata.get("tags", [])) + 1
    ran.cells.insert(
        at, v4.new_code_cell("# Parameters\nwidth = 4", metadata={"tags": ["injected-parameters"]})
    )
    code = next(c for c in reversed(ran.cells) if c.cell_type == "code")
    code.outputs = [v4.new_output("stream", text="kept")]
    nbformat.write(ran, out)
    chapter = nbformat.read(ROOT / "chapters/19_your_optimizer.ipynb", 4)
    chapter.cells[0].source += "\n\nOne more sentence."
    nbformat.write(chapter, tmp_path / "in.ipynb")
    assert new_prose(tmp_path / "in.ipynb", out)
    now = nbformat.read(out, 4)
    assert "One more sentence." in now.cells[0].source and len(now.cells) == len(chapter.cells) + 1
    kept, before = ([c.outputs for c in nb.cells if c.cell_type == "code"] for nb in (now, ran))
    assert kept == before and kept[-1][0].text == "kept"
    first = next(c for c in chapter.cells if c.cell_type == "code")
    for change in ({"source": first.source + "\nmore = 1"}, {"metadata": {"tags": ["another"]}}):
        kept = {name: first[name] for name in change}
        first.update(change)
        nbformat.write(chapter, tmp_path / "in.ipynb")
        assert not new_prose(tmp_path / "in.ipynb", out)
        first.update(kept)
    assert not new_prose(tmp_path / "in.ipynb", tmp_path / "nothing.ipynb")


def test_folded_cells_are_called_by_what_they_do(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from execute import called, name_the_folded

    assert called('figures.ledger(x)\npages.caption(\n    "Figure 5",\n    "Words",\n)') == "Code of Figure 5"
    assert called('if found:\n    a = 1\n    pages.caption("Figure 5", "Words")', False) == "Code"
    assert called("a = 1\n\n\ndef found(b):\n    c = b\n") == "Code: found"
    assert called("(a, b), c = 1, 2\na = 3\nd.e = f[0] = 4") == "Code: a, b, c"
    assert called("_, a = found()\npages.say(f'{a}')") == "Code of these words"
    assert called("_ = 1") == called("%time x = 1") == called("x = = 1") == "Code"
    kinds = {"folded": ["hide-input"], "injected": ["injected-parameters"], "seen": []}
    cells = [v4.new_code_cell("lr = 1", metadata={"tags": tags}) for tags in kinds.values()]
    named = {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}
    cells.append(v4.new_code_cell("x = 1", metadata={"tags": ["hide-input"], "mystnb": named}))
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    name_the_folded(tmp_path / "a.ipynb", "laptop")
    folded, injected, seen, imports = nbformat.read(tmp_path / "a.ipynb", as_version=4).cells
    assert folded.metadata["mystnb"]["code_prompt_show"] == "Code: lr"
    assert injected.metadata["mystnb"]["code_prompt_hide"] == "Parameters of the profile laptop"
    assert set(injected.metadata["tags"]) == {"injected-parameters", "hide-input"}
    assert "mystnb" not in seen.metadata and imports.metadata["mystnb"] == named


def test_a_killed_kernel_is_named(tmp_path):
    """As `make book` runs a chapter and then names what failed."""
    parameters = v4.new_code_cell("epochs = 1", metadata={"tags": ["parameters"]})
    cells = [parameters, v4.new_code_cell("import os; os._exit(1)"), v4.new_code_cell("epochs")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    (tmp_path / "p.yaml").write_text("epochs: 2\n")
    out = tmp_path / "out" / "05_dies.ipynb"
    out.parent.mkdir()
    execute = [sys.executable, ROOT / "tools/execute.py", tmp_path / "in.ipynb", out, tmp_path / "p.yaml"]
    assert subprocess.run(execute, capture_output=True, check=False).returncode
    done = subprocess.run(
        [sys.executable, ROOT / "tools/failures.py", out.parent], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "chapter 05_dies failed in cell 3: DeadKernelError: the kernel died"


def test_a_parameter_file_that_is_not_yaml_is_named_and_nothing_older_shown(tmp_path):
    parameters = v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    chapter, out = tmp_path / "in.ipynb", tmp_path / "out" / "05_fails.ipynb"
    out.parent.mkdir()
    nbformat.write(
        v4.new_notebook(cells=[parameters, v4.new_code_cell("print(x)")], metadata=kernel), chapter
    )
    shutil.copy(chapter, out)
    (tmp_path / "p.yaml").write_text("x:\t[5\n")
    execute = [sys.executable, ROOT / "tools/execute.py", chapter, out, tmp_path / "p.yaml"]
    assert subprocess.run(execute, capture_output=True, check=False).returncode
    done = subprocess.run(
        [sys.executable, ROOT / "tools/failures.py", out.parent], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith(
        "chapter 05_fails failed in cell 1: PapermillError: papermill could not begin"
    )
    assert f"{tmp_path / 'p.yaml'}" in done.stderr


def test_the_protocols_profile_has_chapter_03_from_stored_runs_and_else_the_laptops():
    told = subprocess.run(
        ["make", "-n", "-j1", "-B", "--no-print-directory", "book", "PROFILE=protocol", "ENV=", "BIN=."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    files = re.findall(r"execute.py chapters/(\S+)\.ipynb _build/protocol/\S+ params/(\w+)/(\S+)\.yaml", told)
    assert len(files) == len(CHAPTERS) and all(chapter == of for chapter, _, of in files)
    assert [chapter for chapter, profile, _ in files if profile == "protocol"] == ["03_adamw"]
    assert {profile for _, profile, _ in files} == {"protocol", "laptop"}
    given = yaml.safe_load((ROOT / "params/protocol/03_adamw.yaml").read_text("utf-8"))
    fields = {f: given[f] for f in ("dataset", "net", "fit", "scale", "seed", "width", "epochs", "momentum")}
    for name in OPTIMIZERS:
        lr = given["lr_sgd"] if name.startswith("SGD") else given["lr"]
        assert Run.named(name, given["wd"], lr=lr, **fields) in Store(shipped=ROOT / "results")


@pytest.mark.counts("bad inputs refused")
def test_a_profile_that_is_not_there_is_told_before_anything_is_made(tmp_path):
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "book", "PROFILE=laptp"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and not done.stdout
    assert "PROFILE = laptp is not allowed: use laptop, quick, protocol or paper" in done.stderr
