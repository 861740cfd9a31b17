"""What the project takes from others: pinned, licensed, and never executed where it is only data."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
PINS = {canonicalize_name(name): version for name, version in PINS.items()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# the tool of `make mutate` is installed by that target alone, JupyterLab by who wants it
EXTRAS = [of for extra, of in PROJECT["optional-dependencies"].items() if extra not in ("mutate", "live")]
DIRECT = [Requirement(r) for r in sum(EXTRAS, PROJECT["dependencies"])]
DIRECT = [r for r in DIRECT if r.name != PROJECT["name"]]
SOURCES = [
    *ROOT.glob("ncutils/**/*.py"),
    *ROOT.glob("tools/*.py"),
    *ROOT.glob("benchmarks/*.py"),
    *ROOT.glob("chapters/*.ipynb"),
]


def needed(name: str) -> list[Requirement]:
    """What an installed package requires here, without its extras."""
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_the_pins_fit_the_project_and_each_other():
    """Everything that the project needs, and all that those need in turn, is pinned to a version that each allows."""
    queue, seen = [("ncutils", r) for r in DIRECT], set()
    while queue:
        by, requirement = queue.pop()
        if by != "ncutils" and importlib.metadata.version(by) != PINS[by]:
            continue  # what the pinned version needs is known only where it is installed
        name = canonicalize_name(requirement.name)
        if name in ("setuptools", "pip", "wheel"):  # the environment brings them
            continue
        assert name in PINS, f"{name}, which {by} needs, is not in constraints.txt"
        assert requirement.specifier.contains(PINS[name], prereleases=True), (
            f"{by} needs {requirement}, not {PINS[name]}"
        )
        if name not in seen:
            seen.add(name)
            queue += [(name, r) for r in needed(name)]
    assert {canonicalize_name(r.name) for r in DIRECT} <= seen


def test_every_dependency_has_a_licence():
    from ncutils.book.tables import licences

    table = licences()
    assert {canonicalize_name(r.name) for r in DIRECT} <= {
        canonicalize_name(name) for name in table["package"]
    }
    assert table["licence"].str.len().gt(2).all() and not table["licence"].str.contains("unknown").any()
    assert not table["licence"].str.contains(r"\bA?GPL", regex=True).any()


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


EXECUTES = re.compile(
    r"^(eval|exec|compile|__import__)$|(^|\.)(pickle|cPickle|dill|cloudpickle|marshal|shelve)\.|joblib\.load$|read_pickle$"
    r"|yaml\.(load|load_all|full_load|unsafe_load|FullLoader|UnsafeLoader|Loader)$|os\.(system|popen)$|importlib\.import_module$"
)


def dangerous(source: str) -> list[str]:
    """Calls that run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                f"import {n}" for n in names if n.split(".")[0] in ("pickle", "dill", "marshal", "shelve")
            ]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if EXECUTES.search(called) or given.get("shell") == "True" or given.get("allow_pickle") == "True":
            found.append(called)
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_nothing_executes_what_it_reads(path):
    assert not dangerous(code_of(path))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "eval(x)",
        "exec(x)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "os.system(x)",
    ]
    + [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "pd.read_pickle(p)",
        "np.load(p, allow_pickle=True)",
    ]
    + ["subprocess.run(x, shell=True)", "joblib.load(p)"],
)
def test_the_search_finds_what_it_looks_for(code):
    assert dangerous(code)
    assert not dangerous("torch.load(p, weights_only=True); yaml.safe_load(f); model.eval(); re.compile(x)")


PRIVATE = re.compile(
    r"/home/|/root/|/Users/|/tmp/|/work/|\b[A-Z]:\\{1,2}\w|(ghp|gho|github_pat|glpat|hf|sk|pk|xox[bp])[_-][A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}"
    r"|-----BEGIN|(?i:password|api_key|secret|token)\s*=\s*\\?['\"]"
)


@pytest.mark.parametrize(
    "path",
    [
        *ROOT.glob("chapters/*.ipynb"),
        *ROOT.glob("params/*/*.yaml"),
        *ROOT.glob("*.md"),
        *ROOT.glob("chapters/*.md"),
    ],
    ids=str,
)
def test_no_absolute_path_and_no_token(path):
    assert not PRIVATE.search(path.read_text("utf-8"))


def test_the_search_finds_paths_and_tokens():
    for text in (
        "see /" + "home/me/x",
        "hf_" + "a1" * 12,
        "token = 'x'",
        r"token = \"x\"",
        r"C:\\Users",
        r"C:\Users",
    ):
        assert PRIVATE.search(text)
    assert not PRIVATE.search("`papermill chapters/03_adamw.ipynb out.ipynb`, tokens [N, p], a class token")
