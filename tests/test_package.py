"""The wheel and the source archive, tried where the clone is not: in an environment of their own and an empty folder."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
USE = """
import torch, ncutils
from ncutils import Run, Store, measure, train
assert ncutils.__file__.startswith({where!r}), ncutils.__file__
loader = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)]
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.Linear(16, 4))
found = measure(model, loader)
found.plot().savefig("picture.png")
from ncutils.sweeps import train_all
train_all([Run(epochs=1, width=2, measure="ends")])
print(len(list(Store().histories())), found["nc0"] > 0)
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


HOOKS = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; "
WHEEL, ARCHIVE = (HOOKS + f"b.build_{kind}(out)" for kind in ("wheel", "sdist"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with what git knows of this clone, results, too, but no git."""
    if not importlib.util.find_spec("setuptools_scm"):
        pytest.skip("needs setuptools-scm, which builds the package")
    folder = tmp_path_factory.mktemp("sources")
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    """A folder with the wheel, made where there is no git."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-c", WHEEL, out, cwd=sources)
    return out


def code_files():
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob("ncutils/**/*.py")}
    found |= {str(path.relative_to(ROOT)) for path in ROOT.glob("ncutils/book/widgets/*") if path.is_file()}
    return found | {"ncutils/py.typed", "ncutils/rules.csv"}


def contents(wheel):
    opened = zipfile.ZipFile(wheel)
    return {name: opened.read(name) for name in opened.namelist()}


def test_the_wheel_holds_the_library_and_no_more(built):
    wheel = next(built.glob("*.whl"))
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == code_files()
    fallback = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools_scm"][
        "fallback_version"
    ]
    assert wheel.name == f"ncutils-{fallback}-py3-none-any.whl"


def test_the_source_archive_is_small_and_makes_the_same_wheel(sources, tmp_path):
    """Built in a repository, whose files would all travel in it; a wheel of the unpacked archive, without git, against one of
    the repository."""
    clone, out, unpacked = tmp_path / "clone", tmp_path / "dist", tmp_path / "unpacked"
    shutil.copytree(sources, clone, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "all"), ("tag", "1.2.3")):
        run("git", *command, cwd=clone)
    run(sys.executable, "-c", ARCHIVE, out, cwd=clone)
    run(sys.executable, "-c", WHEEL, out, cwd=clone)
    archive = out / "ncutils-1.2.3.tar.gz"
    assert archive.stat().st_size < 500_000
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames() if opened.getmember(name).isfile()}
        opened.extractall(unpacked, filter="data")
    made = {name for name in held if name.startswith("ncutils.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    about = {"pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"}
    assert held - made == code_files() | about
    run(sys.executable, "-c", WHEEL, unpacked, cwd=unpacked / "ncutils-1.2.3")
    same = "ncutils-1.2.3-py3-none-any.whl"
    assert contents(unpacked / same) == contents(out / same)


def test_the_wheel_alone_measures_trains_and_lists_runs(built, tmp_path):
    """In an environment that has this one's packages, but its own ncutils, started in an empty folder."""
    venv.create(tmp_path / "env", with_pip=False)
    where = Path(
        run(
            tmp_path / "env/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
        ).strip()
    )
    (where / "others.pth").write_text(str(Path(torch.__file__).parents[1]))
    python = tmp_path / "env/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--ignore-installed")
    run(*pip, "--no-deps", "--no-index", next(built.glob("*.whl")))
    empty = tmp_path / "empty"
    empty.mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NCUTILS_RUNS", "NCUTILS_DATA")}
    where_used = {"cwd": empty, "env": kept | {"MPLBACKEND": "Agg"}}
    assert run(python, "-c", USE.format(where=str(tmp_path)), **where_used).split() == ["1", "True"]
    listed = run(python, "-m", "ncutils", "runs", **where_used)
    assert re.search(r"SGD\s+resnet9\s+2\s+digits", listed)
    assert run(tmp_path / "env/bin/ncutils", "runs", **where_used) == listed
    assert sorted(p.name for p in empty.iterdir()) == ["picture.png", "runs"]


def test_how_to_cite_is_valid_yaml_and_the_changes_name_the_fallback_version():
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cite)
    assert (
        cite["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["license"]
    )
    fallback = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools_scm"][
        "fallback_version"
    ]
    assert f"\n## {fallback}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
