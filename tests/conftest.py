"""Every test has a store of its own. What the tests try is counted: NCUTILS_COUNTS names a file for the book's page."""

import collections
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ncutils import data
from ncutils.book.site import chromium

# of child processes, which would wait for each other's threads: the tests have all cores
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
COUNTS, STARTED = collections.Counter(), time.time()
SOAK = bool(os.environ.get("NCUTILS_SOAK"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "counts(what): a passed test counts as one of these on the book's page"
    )


def pytest_collection_modifyitems(items):
    """What needs the built book first: one worker builds it at once, while the other has enough to do."""
    items.sort(key=lambda item: "quick_book" not in item.fixturenames)


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        COUNTS["tests passed"] += 1
        for what, n in report.counts:
            COUNTS[what] += n
    elif report.skipped:
        COUNTS["tests skipped"] += 1


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    marked = [(mark.args[0], 1) for mark in item.iter_markers("counts")]
    outcome.get_result().counts = marked + getattr(item, "counted", [])


def pytest_sessionfinish(session, exitstatus):
    """One line a kind: what was tried, how often. Only a run without a failure is worth a line in the book."""
    if not os.environ.get("NCUTILS_COUNTS") or exitstatus or hasattr(session.config, "workerinput"):
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    COUNTS.update({"minutes": round((time.time() - STARTED) / 60)})
    COUNTS["commit"] = commit.stdout.strip()
    with open(os.environ["NCUTILS_COUNTS"], "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("what", "count"), *sorted(COUNTS.items(), key=str)])


@pytest.fixture
def count(request):
    """Adds to a count of the book: what a test does more than once, say 20 crashes survived."""
    request.node.counted = []
    return lambda what, n=1: request.node.counted.append((what, int(n)))


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """Each test has an empty store, and no shipped results."""
    monkeypatch.setenv("NCUTILS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("ncutils.store.project_folder", lambda name: tmp_path / name)
    data._load.cache_clear()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quick_book(tmp_path_factory, worker_id):
    """The folder of `make book` at the quick profile, built from the results that ship: chapters/ executed, _build/html."""
    if not shutil.which("npm"):
        pytest.skip("needs npm, which brings the charts' scripts into the book")
    temporary = tmp_path_factory.getbasetemp()  # a worker's own lies in that of all
    folder = (temporary if worker_id == "master" else temporary.parent) / "book"
    with FileLock(f"{folder}.lock"):
        if not (folder / "_build" / "html" / "index.html").exists():
            command = [
                "make",
                "book",
                "PROFILE=quick",
                f"SITE={folder}",
                f"BIN={Path(sys.executable).parent}",
                "ENV=",
            ]
            environment = os.environ | {"NCUTILS_RUNS": f"{folder}_runs"}
            done = subprocess.run(
                command,
                cwd=Path(__file__).parents[1],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return folder


@pytest.fixture(scope="session")
def browser():
    """A Chromium, the system's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    executable = chromium()
    if not executable:
        pytest.skip("needs a Chromium on the path")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def real_data():
    """NCUTILS_DATA with MNIST and FashionMNIST in it, or a skip that says what is missing."""
    folder = os.environ.get("NCUTILS_DATA", "")
    for name in ("MNIST", "FashionMNIST"):
        if not os.path.isdir(os.path.join(folder, name, "raw")):
            pytest.skip(f"needs {name} under NCUTILS_DATA, which is {folder or 'not set'}")
    return folder


@pytest.fixture
def peer(monkeypatch):
    """The library that the paper's released code uses, from a checkout that NCUTILS_PEER names."""
    folder = os.environ.get("NCUTILS_PEER", "")
    if not Path(folder, "neural_collapse", "measure.py").is_file():
        pytest.skip(
            f"needs a checkout of rhubarbwu/neural-collapse in NCUTILS_PEER, which is {folder or 'not set'}"
        )
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(folder)
    from neural_collapse import accumulate, kernels, measure

    return accumulate, kernels, measure


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of a few megabytes on a folder; full disks and read-only folders are real only there."""
    folders = []

    def mount(*options, at="disk"):
        folder = tmp_path / at
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", folder], check=True)
