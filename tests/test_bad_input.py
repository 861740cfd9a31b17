"""What cannot be right is refused in one sentence that names the parameter or the file, and leaves nothing half-made.

Fields of Run, grids, metrics and optimizers have their cases beside their other tests; here are the ways in: the command
line, YAML, papermill, folders of data.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncutils import data, machine, training
from ncutils.__main__ import main
from ncutils.book import manifest
from ncutils.files import project_folder
from ncutils.metrics import class_means, nc_metrics, singular_values
from ncutils.models import ARCHITECTURES
from ncutils.store import Store, read_grid
from ncutils.sweeps import train_all
from ncutils.training import Run, least_memory, train
from tests.test_chapters import papermill
from tests.test_data import make_folder

ROOT = Path(__file__).resolve().parents[1]
FINE = {"width": 2, "epochs": 1, "n_train": 40, "measure": "ends"}
pytestmark = pytest.mark.counts("bad inputs refused")


def one_sentence(text: str) -> str:
    assert text.count("\n") == 1 and text.startswith("ncutils: ") and len(text) < 700, text
    return text


# ---- the command line


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("", "must be a mapping"),
        ("- 1\n- 2", "must be a mapping"),
        ("entries: []\ncomon: {}", "and nothing else"),
        ("entries: [1]", "a list of such mappings"),
        ("common: [1]\nentries: []", "'common' must be a mapping"),
        ("entries: [{optimizer: Adam, wd: []}]", "an entry stands for 0 runs"),
        ("entries: [{optimizer: [[Adam]], wd: 0}]", "optimizer = ['Adam'] is not allowed"),
        ("entries: [{optimizer: null, wd: 0}]", "optimizer = None is not allowed"),
        ("entries: [{optimizer: Adam, wd: 0, 3: 4}]", "keywords must be strings"),
        ("entries: [{optimizer: Adam, wd: 0, lr: {a: 1}}]", "lr = {'a': 1} is not allowed"),
        ("entries: [{optimizer: Adam, wd: 0, lr: .nan}]", "lr = nan is not allowed"),
        ("entries: [{optimizer: Adam, wd: .inf}]", "wd = inf is not allowed"),
        (
            "entries: [{optimizer: Adam, wd: 0, epochs: 2026-01-01}]",
            "epochs = datetime.date(2026, 1, 1) is not allowed",
        ),
        ("entries: [{optimizer: Adam, wd: 0, width: true, lr: 1}]", "is not allowed"),
        (
            "entries: [{optimizer: Adam, wd: 0, rule: sgd}]",
            "rule is not allowed beside a name and wd, which say it: optimizer = 'Adam'",
        ),
        ("entries: [{optimizer: Adam, wd: 0, dataset: ../../etc}]", "dataset = '../../etc' is not known"),
        (
            "entries: [{optimizer: SGD, wd: 0, lr: 1}]\nentries: [{optimizer: Adam, wd: 0}]",
            "'entries' is there twice",
        ),
        ("entries: [{optimizer: SGD, wd: 0, lr: 0.1, lr: 0.2}]", "'lr' is there twice"),
        (
            "entries: [{optimizer: SGD, wd: 0, dataset: 2024-13-45}]",
            "grid.yaml is not YAML: month must be in 1..12",
        ),
        ("entries: [{optimizer: SGD, wd: 0, lr: !!bool maybe}]", "grid.yaml is not YAML"),
        ("entries: !!python/object/apply:os.system ['touch exploded']", "is not YAML"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]", "and nothing else"),
    ],
)
def test_grids(grid, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(grid, encoding="utf-8")
    assert main(["sweep", "grid.yaml", "--device", "cpu"]) == 2
    assert sentence in one_sentence(capsys.readouterr().err)
    assert os.listdir() == ["grid.yaml"]


def test_a_grid_that_unfolds_without_end(tmp_path, capsys):
    """Lists of lists of lists (YAML's "billion laughs"), and a product of long lists: neither fills the memory."""
    layers = ["l0: &l0 [x, x]"] + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "laughs.yaml").write_text(
        "common: {optimizer: Adam, wd: 0}\nentries:\n  - " + "\n    ".join(layers) + "\n    lr: [*l11]\n"
    )
    (tmp_path / "long.yaml").write_text(
        "entries: [{optimizer: Adam, wd: 0, "
        f"seed: {list(range(200))}, width: {list(range(1, 200))}, epochs: {list(range(1, 200))}}}]"
    )
    for name, sentence in (
        ("laughs", "an entry stands for 200000000000 runs"),
        ("long", "an entry stands for 7920200 runs"),
    ):
        assert main(["sweep", str(tmp_path / f"{name}.yaml")]) == 2
        error = one_sentence(capsys.readouterr().err)
        assert sentence in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep", "none.yaml"], "grid = 'none.yaml' is not a file"),
        (["sweep", "."], "grid = '.' is not a file"),
        (["sweep", "binary.yaml"], "binary.yaml is not YAML"),
        (["sweep", "grid.yaml", "--workers", "0"], "workers = 0 is not allowed"),
        (["sweep", "grid.yaml", "--gpus-per-run", "0.5"], "gpus-per-run is not allowed without --ray and"),
        (
            ["sweep", "grid.yaml", "--ray", ""],
            "ray = '' is not allowed: it must be 'auto' or the head node's",
        ),
        *(
            (
                ["sweep", "grid.yaml", "--ray", "auto", "--device", "cuda", "--gpus-per-run", share],
                f"gpus-per-run = {share} is not allowed: it must be a share of one GPU above 0, or a whole",
            )
            for share in ("0", "-1", "nan", "1.5", "inf")
        ),
        (["sweep", "grid.yaml", "--device", "tpu9"], "device = 'tpu9' is not to be had here"),
        (["sweep", "grid.yaml", "--dry-run", "--device", "tpu9"], "device = 'tpu9' is not to be had here"),
        (["runs", "--where", "widht=8"], "unknown field 'widht'"),
        (["runs", "--where", "width"], "is not of the form FIELD=VALUE"),
        (["pack", "out.parquet"], "no stored run matches anything"),
        (["pack", "out.parquet", "--where", "width=3"], "no stored run matches width=3"),
    ],
)
def test_arguments(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("binary.yaml").write_bytes(b"\xff\x00entries")
    Path("grid.yaml").write_text("entries: [{optimizer: Adam, wd: 0, epochs: 1, width: 2}]", encoding="utf-8")
    assert main(arguments) == 2
    assert sentence in one_sentence(capsys.readouterr().err)
    assert sorted(os.listdir()) == ["binary.yaml", "grid.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [["swep"], ["sweep"], ["sweep", "g", "--worker", "2", "--x"], ["sweep", "g", "--workers", "two"], []],
)
def test_arguments_that_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and "error: " in capsys.readouterr().err


def test_the_module_itself_fails_without_a_traceback(tmp_path):
    """In a process of its own: the exit status, and nothing in front of the sentence."""
    (tmp_path / "grid.yaml").write_text("entries: [{optimizer: Adam, wd: 0, width: 100000}]")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ncutils", "sweep", "grid.yaml", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "width = 100000 is not allowed here: resnet9" in one_sentence(done.stderr)
    assert not list(Store().folder.iterdir())


def test_an_unreachable_cluster(tmp_path, capsys):
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
    (tmp_path / "grid.yaml").write_text("entries: [{optimizer: Adam, wd: 0, epochs: 1, width: 2}]")
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--ray", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_machine_without_ray(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "grid.yaml").write_text("entries: [{optimizer: Adam, wd: 0, epochs: 1, width: 2}]")
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--ray", "auto"]) == 2
    assert "ray is not installed" in one_sentence(capsys.readouterr().err)


# ---- too large


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 100_000},
        {"width": 100_000, "arch": "vgg9"},
        {"width": 100_000, "arch": "vit"},
        {"width": 100_000, "arch": "vit", "net": "released"},
        {"width": 100_000, "arch": "resnet50"},
        {"width": 100_000, "arch": "mlp"},
        {"width": 100_000, "arch": "ufm", "dataset": "unconstrained", "batch_size": 10_000, "rule": "adam"},
    ],
)
def test_networks_that_do_not_fit_are_refused_with_the_estimate(fields):
    with pytest.raises(
        MemoryError, match=r"width = 100000 is not allowed here: .* GB of memory, .* GB are free"
    ):
        train(Run(epochs=1, **fields), device="cpu")


def test_a_containers_limit_counts_as_free_memory(tmp_path):
    """As Docker, Kubernetes or Binder set it: what is cached of files can be given up."""
    whole = machine.free_memory(tmp_path)
    for name, text in {
        "current": "600000000",
        "stat": "anon 1\ninactive_file 100000000\n",
        "max": "max",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert 0.5 < machine.free_memory(tmp_path) / whole < 2
    (tmp_path / "memory.max").write_text("700000000\n")
    assert machine.free_memory(tmp_path) == 200_000_000


def test_the_limit_of_an_older_container_counts_too(tmp_path):
    """Cgroup v1: what the groups below use and cache is in the totals."""
    (tmp_path / "memory").mkdir()
    numbers = {"limit_in_bytes": "700000000", "usage_in_bytes": "600000000"}
    for name, text in (numbers | {"stat": "inactive_file 1\ntotal_inactive_file 100000000\n"}).items():
        (tmp_path / f"memory/memory.{name}").write_text(text, encoding="ascii")
    assert machine.free_memory(tmp_path) == 200_000_000
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712", encoding="ascii")  # none
    assert machine.free_memory(tmp_path) > 200_000_000


def in_a_namespace(mounts: str, code: str, **environment) -> subprocess.CompletedProcess:
    """Runs Python where file systems are mounted that no other process sees."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system for a process of its own")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'{mounts}\nexec {sys.executable} -c "$CODE"'],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CODE": code} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, len(os.sched_getaffinity(0))),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, len(os.sched_getaffinity(0))),
    ],
)
def test_a_containers_quota_counts_as_cores(files, cores):
    """Of workers in a sweep, and of threads of a wide network."""
    mounts = "mount -t tmpfs tmpfs /sys/fs/cgroup; mkdir /sys/fs/cgroup/cpu\n"
    mounts += "\n".join(f"echo {text} > /sys/fs/cgroup/{name}" for name, text in files.items())
    code = """
import torch
from ncutils import machine, sweeps
torch.set_num_threads(64)
with machine.set_for_training(torch.device("cpu"), None, wide=True):
    print(machine.usable_cores(), sweeps.default_workers("cpu"), torch.get_num_threads())
"""
    done = in_a_namespace(mounts, code)
    cores = min(cores, len(os.sched_getaffinity(0)))
    assert done.stdout.split() == [str(cores)] * 3, done.stderr


def test_a_small_shared_memory_is_named(tmp_path):
    """A container's /dev/shm has 64 MB unless it is told otherwise; images on their way between processes lie there."""
    make_folder(tmp_path / "pets", sizes=((512, 512),))
    code = "from ncutils.__main__ import main; print(main(['sweep', 'grid.yaml', '--workers', '1', '--device', 'cpu']))"
    fields = "width: 1, arch: mlp, epochs: 1, dataset: pets, image_size: 512, batch_size: 8"
    (tmp_path / "grid.yaml").write_text(f"entries: [{{optimizer: SGD, wd: 0, {fields}}}]", encoding="utf-8")
    done = in_a_namespace(
        f"mount -t tmpfs -o size=1m tmpfs /dev/shm; cd {tmp_path}", code, NCUTILS_DATA=str(tmp_path)
    )
    assert done.stdout.split()[-1:] == ["2"], done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(
        "ncutils: a process that reads images failed, perhaps for want of shared memory, of which /dev/shm has 1 MB"
    ), done.stderr
    assert "Traceback" not in done.stderr


def test_the_estimate_counts_low_and_not_by_much(monkeypatch):
    """Weights and Adam's two states to the byte; against the memory that a step really takes."""
    shape = (256, 3, 32, 32)
    of_weights = 4 * sum(p.numel() for p in ARCHITECTURES["resnet9"](8, shape, 10).parameters())
    small = least_memory(Run(rule="adam", width=8, batch_size=1), shape, 10)
    assert small == 4 * of_weights + 4 * 256 * 64
    code = """
import psutil, resource, torch
from ncutils import data, machine, step, training
run, shape = training.Run(width=64, batch_size=256, lr=1e-3), (256, 3, 32, 32)
images, labels = torch.randn(shape), torch.arange(256) % 10
dataset = data.Dataset(images, labels, images, labels, 10)
def one_epoch(run):
    state = training.State(run, dataset, torch.device("cpu"))
    step.epoch(step.Step(state.model, state.optimizer, run), images, labels, state.order)
one_epoch(run.model_copy(update={"width": 1}))
before = psutil.Process().memory_info().rss
one_epoch(run)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(training.least_memory(run, shape, 10) / (peak - before))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert 0.3 < float(done.stdout) < 1, done.stdout


# ---- locale, environment, tools

NAMED = "naïve-Ωmega"  # no character set but Unicode's has both letters
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}  # ASCII


def test_no_code_reads_text_in_the_locales_encoding():
    """What the linter, which does not follow a path through a function, does not see."""
    root = Path(__file__).resolve().parents[1]
    files = [
        f for of in ("ncutils", "chapters", "tools", "benchmarks") for f in (root / of).rglob("*.[pi]*[yb]")
    ]
    assert len(files) > 60
    for file in files:
        assert not re.search(r"\.read_text\(\)", file.read_text("utf-8", "ignore")), file


def test_text_files_are_utf_8_whatever_the_locale(tmp_path):
    """A grid with a comment that ASCII lacks, in a folder that it lacks, trained, printed, packed and described; and again
    with a byte order mark, and as UTF-16."""
    folder = tmp_path / NAMED
    make_folder(folder / "data" / "pets")
    grid = f"# {NAMED}\nentries: [{{arch: mlp, optimizer: SGD, wd: 0, width: 1, epochs: 1, dataset: pets, batch_size: 4}}]"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (folder / f"{encoding}.yaml").write_bytes(grid.encode(encoding))
    environment = os.environ | PLAIN | {"PYTHONPATH": str(ROOT), "NCUTILS_DATA": str(folder / "data")}
    pack = ["pack", "packed.parquet", "--made-by", f"sweep {NAMED}", "--commit", "0"]
    commands = [
        "sweep",
        "utf-8.yaml",
        "--workers",
        "1",
        ",",
        "sweep",
        "utf-8-sig.yaml",
        ",",
        "sweep",
        "utf-16.yaml",
    ]
    commands += [",", "runs", ",", "runs", "--csv", ",", *pack, ",", "sweep", "nö.yaml"]
    code = """
import sys
from itertools import groupby
from ncutils.__main__ import main
commands = [list(words) for comma, words in groupby(sys.argv[1:], ",".__eq__) if not comma]
sys.exit([main(words) for words in commands] != [0, 0, 0, 0, 0, 0, 2])
"""  # one process for all: its start is what takes long
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", code, *commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert not [w for w in done.stderr.splitlines() if b"EncodingWarning" in w and b"/ncutils/" in w], (
        done.stderr
    )
    assert done.stdout.count(b"1 runs, 1 distinct, 0 stored") == 1  # the same run by each file
    assert done.stdout.count(b"1 runs, 1 distinct, 1 stored") == 2
    assert f"sweep {NAMED}" in (folder / "manifest.csv").read_text("utf-8")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """Where no shell has put it there: in a notebook, a unit file, an .env file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NCUTILS_RUNS", "~/runs")
    monkeypatch.setenv("NCUTILS_DATA", "~/data")
    assert Store().folder == tmp_path / "runs" and Store("~/other").folder == tmp_path / "other"
    assert data.data_folder() == tmp_path / "data" and project_folder("~/grid.yaml") == tmp_path / "grid.yaml"
    (tmp_path / "grid.yaml").write_text("entries: [{optimizer: SGD, wd: 0}]", encoding="utf-8")
    assert len(read_grid("~/grid.yaml")) == 1


@pytest.mark.parametrize("git", ["missing", "refuses"])
def test_without_git_a_commit_must_be_named(git, tmp_path, monkeypatch, capsys):
    train_all([Run(width=1, arch="mlp", epochs=1, n_train=40)], workers=1)
    if git == "refuses":  # as it does in a folder of another user
        (tmp_path / "git").write_text(
            "#!/bin/sh\necho 'fatal: dubious ownership' >&2; exit 128\n", encoding="ascii"
        )
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    pack = ["pack", str(tmp_path / "a.parquet"), "--made-by", "a sweep"]
    assert main(pack) == 2
    error = one_sentence(capsys.readouterr().err)
    assert "the code's commit is not known" in error and error.endswith("name it with --commit\n")
    assert ("dubious ownership" in error) == (git == "refuses") and not (tmp_path / "a.parquet").exists()
    assert main([*pack, "--commit", "abc"]) == 0 and "abc" in (tmp_path / "manifest.csv").read_text("utf-8")


def test_outside_a_clone_a_commit_must_be_named(tmp_path, monkeypatch):
    """Not that of whatever repository is in the current folder."""
    monkeypatch.setattr("ncutils.book.manifest.in_clone", lambda: False)
    with pytest.raises(ValueError, match="commit is not known .it is in no clone.: name it with --commit"):
        manifest.present_commit()


@pytest.mark.parametrize("content", [b"", b"name,commit\na,b\n", "file,command\na,é\n".encode("cp1252")])
def test_a_manifest_that_cannot_be_read_is_named_before_anything_is_written(content, tmp_path, capsys):
    train_all([Run(width=1, arch="mlp", epochs=1, n_train=40)], workers=1)
    (tmp_path / "manifest.csv").write_bytes(content)
    assert main(["pack", str(tmp_path / "a.parquet"), "--made-by", "a sweep", "--commit", "abc"]) == 2
    assert "manifest.csv is no CSV in UTF-8 with a column 'file'" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "a.parquet").exists() and (tmp_path / "manifest.csv").read_bytes() == content


def test_pack_takes_the_home_folder_and_no_folder(tmp_path, monkeypatch, capsys):
    train_all([Run(width=1, arch="mlp", epochs=1, n_train=40)], workers=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["pack", "~/a.parquet"]) == 0 and (tmp_path / "a.parquet").is_file()
    capsys.readouterr()
    assert main(["pack", str(tmp_path)]) == 2
    assert "is a folder: name a file in it" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["NCUTILS_RUNS", "NCUTILS_DATA"])
def test_a_home_folder_of_nobody_is_refused_by_name(name, monkeypatch, tmp_path, capsys):
    """And does not become a folder that is called so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "~nobody-here/kept")
    with pytest.raises(
        ValueError, match=f"^{name}: ~nobody-here/kept is not a folder or file here: ~nobody-here is"
    ):
        train_all([Run(dataset="pets")])
    assert main(["sweep", "~nobody-here/grid.yaml"]) == 2
    assert one_sentence(capsys.readouterr().err).endswith(": ~nobody-here is no user's home folder\n")
    assert not list(tmp_path.glob("~*"))


@pytest.mark.parametrize("seconds", ["5min", "nan", "-1"])
def test_seconds_between_checkpoints_are_checked_before_training(seconds, monkeypatch, capsys):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    with pytest.raises(
        ValueError, match=f"NCUTILS_CHECKPOINT_SECONDS = '{seconds}' is not allowed: it must be"
    ):
        train_all([Run(width=1, arch="mlp", epochs=1, n_train=40)], workers=1)
    assert main(["runs"]) == 0  # what trains nothing does not mind


@pytest.mark.parametrize("cores", ["abc", "2.5"])
def test_a_number_of_cores_that_is_none_is_named(cores, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", cores)
    with pytest.raises(ValueError, match=f"LOKY_MAX_CPU_COUNT = '{cores}' is not allowed"):
        machine.usable_cores()


# ---- data


def copied(real_data, folder, name="MNIST"):
    shutil.copytree(Path(real_data) / name / "raw", folder / name / "raw")
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder / name / "raw"


@pytest.mark.parametrize("damage", ["half", "empty", "labels"])
def test_a_half_downloaded_folder(damage, real_data, tmp_path, monkeypatch):
    raw = copied(real_data, tmp_path)
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    if damage == "labels":
        labels.write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    else:
        images.write_bytes(images.read_bytes()[: {"half": 1_000_000, "empty": 0}[damage]])
    with pytest.raises(
        FileNotFoundError, match="^dataset = 'MNIST' is not in .*, or not whole, and could not"
    ) as error:
        train(Run(dataset="MNIST", **FINE))
    assert "\n" not in str(error.value)


def test_a_folder_with_files_missing(real_data, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    raw = copied(real_data, tmp_path)
    (raw / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="^dataset = 'MNIST' is not in .* could not be downloaded"):
        train(Run(dataset="MNIST", **FINE))


def images_in(folder, content: bytes, name="cat/9.png"):
    make_folder(folder / "pets")
    (folder / "pets/train" / name).write_bytes(content)


def png():
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out := io.BytesIO(), "png")
    return out.getvalue()


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        png()[:40],
        png().replace(b"IDAT", b"IDAX"),
        png()[:150],
        png()[:16] + b"\xff" * 8 + png()[24:],
    ],
    ids=["empty", "text", "cut in the header", "no pixels", "cut at the end", "billions of pixels"],
)
def test_corrupt_images(content, size, tmp_path, monkeypatch):
    images_in(tmp_path, content)
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    run = Run(arch="mlp", dataset="pets", image_size=size, width=2, epochs=1)
    with pytest.raises(ValueError, match="^dataset: .*pets/train/cat/9.png is not a readable image") as error:
        train(run)
    assert "\n" not in str(error.value)


def test_class_folders_that_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    make_folder(tmp_path / "pets", classes=("cat", "dog", "owl"))
    shutil.rmtree(tmp_path / "pets/test/dog")
    with pytest.raises(ValueError, match="pets has the class 'dog' in one of train/ and test/ alone"):
        data.load("pets")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"n_train": 5}, "n_train = 5 is not allowed: digits has 10 classes, and each needs an image"),
        ({"batch_size": 1}, "batch_size = 1 is not allowed with 40 training images"),
        ({"batch_size": 39}, "batch_size = 39 is not allowed with 40 training images"),
        ({"arch": "ufm"}, "arch = 'ufm' has features for all 1437 samples at once"),
        ({"arch": "vit", "image_size": 10}, "arch = 'vit' needs images of a multiple of 4 pixels"),
        (
            {"arch": "vit", "image_size": 10, "net": "released"},
            "arch = 'vit' needs images of a multiple of 4",
        ),
    ],
)
def test_runs_that_do_not_fit_their_data(fields, sentence):
    fields = FINE | fields if fields.get("arch") != "ufm" else {"width": 2, "epochs": 1} | fields
    with pytest.raises(ValueError, match=sentence):
        train(Run(**fields), device="cpu")


# ---- measured by hand

H, Y, W = torch.randn(20, 6), torch.arange(20) % 4, torch.randn(4, 6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((H, Y, W.to("meta")), "must be on one device"),
        ((H, Y.to("meta"), W), "must be on one device"),
        ((H, Y.bool(), W), "labels must be integers"),
        ((H, torch.full_like(Y, 7), W), r"labels must lie in \[0, 4\)"),
        ((H[:1], Y[:1], W), "class 1 of 4 has no sample"),
        ((H[:, :0], Y, W[:, :0]), "features"),
        ((H.to(torch.complex64), Y, W), "features must be floating-point"),
        ((H, Y, W.long()), "weight"),
        ((H, Y, W.clone().fill_(float("nan"))), "weight"),
        ((H.numpy(), Y, W), "features must be a tensor"),
        ((H, Y.tolist(), W), "labels must be a tensor"),
    ],
)
def test_metrics_of_what_is_no_measurement(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        nc_metrics(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n_classes", [4.0, 0, None, "4"])
def test_a_number_of_classes_that_is_none(n_classes):
    with pytest.raises(
        ValueError, match=f"n_classes = {n_classes!r} is not allowed: it must be a whole number"
    ):
        class_means(H, Y, n_classes)


def test_singular_values_of_no_row():
    with pytest.raises(ValueError, match=r"matrix must have a row or more, got \[0, 5\]"):
        singular_values(H.new_zeros(0, 5))


# ---- papermill


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"width": "wide"}, "ValueError: width = 'wide' is not allowed"),
        ({"width": 100_000}, "MemoryError: width = 100000 is not allowed here"),
        ({"device": "tpu9", "epochs": 3}, "ValueError: device = 'tpu9' is not to be had here"),
    ],
)
def test_chapters(parameters, sentence, tmp_path):
    chapter = ROOT / "chapters" / "06_theorem_3_1.ipynb"
    done = papermill(chapter, tmp_path / "out.ipynb", momentum=0.9, **parameters)
    assert done.returncode and done.stderr.strip().splitlines()[-1].startswith(sentence)
    assert not Store().histories()


def test_a_kernel_that_dies_is_an_error_and_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    """The chapter's kernel is killed while it writes its History."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("""
import os, signal, sys
if "ipykernel_launcher" in " ".join(sys.orig_argv):
    from ncutils import store

    def dying(path, content):
        path.with_name(f".{path.name}.1.tmp").write_bytes(content[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    store.write_whole = dying
""")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    small = {"epochs": 2, "width": 2, "momentum": 0.9}
    done = papermill(ROOT / "chapters" / "06_theorem_3_1.ipynb", tmp_path / "out.ipynb", **small)
    assert done.returncode and "DeadKernelError" in done.stderr, done.stderr[-500:]
    run = Run.named("SGD", 0.01, lr=0.0679, **small)
    left = f".{run.hash}.lock", f".{run.hash}.parquet.1.tmp"
    assert sorted(p.name for p in Store().folder.iterdir()) == sorted(left) and not Store().histories()
    train_all([run], workers=1)
    assert [p.name for p in Store().folder.iterdir()] == [f"{run.hash}.parquet"]


def test_an_output_that_cannot_be_written(mounted):
    disk = mounted("-o", "ro")
    done = papermill(ROOT / "chapters" / "06_theorem_3_1.ipynb", disk / "out.ipynb")
    assert done.returncode and "Read-only file system" in done.stderr
    assert not list(disk.iterdir()) and not Store().histories()
