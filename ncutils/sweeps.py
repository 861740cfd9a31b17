"""Many runs: a grid read from a file, what is stored read, what is missing trained, side by side."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ncutils import data
from ncutils.machine import pick_device, progress_bar, usable_cores
from ncutils.runs import History, Run
from ncutils.step import Step, epoch, make_model, run_optimizer
from ncutils.store import Store
from ncutils.training import train

MOST_RUNS = 1_000_000  # of one entry: a file from a stranger must not fill the memory
CLAIMS = 200  # held at once for a Ray cluster: each is an open file


def read_grid(path: str | Path) -> list[tuple[str, Run]]:
    """The entries of a grid file, in order: the optimizer's name as given, and the Run. At wd 0 two names share a Run.

    A YAML mapping with `common`, fields of every run, and `entries`, a list of mappings. An entry holds fields of
    `Run`, with `optimizer` and `wd` (the paper's names, see `Run.named`) in place of rule and decays; a list stands
    for each of its values, and all lists of an entry are multiplied, the last one running fastest.
    Raises ValueError in one sentence for anything else, FileNotFoundError for a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"grid = {str(path)!r} is not a file")
    try:
        grid = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(grid, dict) or not {"entries"} <= set(grid) <= {"common", "entries"}:
        raise ValueError(
            f"{path} must be a mapping with 'entries' and, if need be, 'common', and nothing else"
        )
    common, blocks = grid.get("common") or {}, grid["entries"]
    if (
        not isinstance(common, dict)
        or not isinstance(blocks, list)
        or not all(isinstance(b, dict) for b in blocks)
    ):
        raise ValueError(f"{path}: 'common' must be a mapping of fields, 'entries' a list of such mappings")
    entries = []
    for block in blocks:
        fields = common | block
        values = [value if isinstance(value, list) else [value] for value in fields.values()]
        if missing := {"optimizer", "wd"} - set(fields):
            raise ValueError(f"{path}: {min(missing)!r} is missing in an entry")
        if not 0 < (n := math.prod(map(len, values))) <= MOST_RUNS:
            raise ValueError(f"{path}: an entry stands for {n} runs, 1 to {MOST_RUNS:,} are allowed")
        for combination in itertools.product(*values):
            try:
                run = Run.named(**dict(zip(fields, combination)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {error}") from None
            entries.append((combination[list(fields).index("optimizer")], run))
    return entries


def train_all(
    runs: list[Run],
    store: Store | None = None,
    device: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_run: float = 1.0,
    progress: bool = True,
) -> list[History]:
    """The Histories of `runs`, in their order: each distinct Run is trained at most once, then stored.

    On a CPU, `workers` processes (default: one a core) train one run each: narrow networks gain more from neighbours
    than from threads. On a GPU the default is one; several share it. With `ray`, the address of a Ray cluster ("auto"
    for the one this machine belongs to), its nodes train, each run on one core, or `gpus_per_run` of a GPU where
    `device` is "cuda". Each run is stored as it ends, and a long one leaves checkpoints. What another process trains for
    the same store is left to it and read afterwards. If some runs raise, the others are trained and stored first; then
    the first error is raised. Raises OSError at once where the store's folder is not writable, or a worker is killed.
    """
    store = store or Store()
    found = {run.hash: store.get(run) for run in runs}
    missing = list({run.hash: run for run in runs if found[run.hash] is None}.values())
    if missing:
        if not ray:
            for name in sorted({run.dataset for run in missing}):
                data.splits(name)  # a download, or its failure, comes before any worker starts
            workers = min(workers or default_workers(device), len(missing))
            one_pass = functools.partial(
                _trained, store=store, device=device, workers=workers, progress=progress
            )
        else:
            one_pass = functools.partial(
                _on_ray, store=store, device=device, address=ray, gpus_per_run=gpus_per_run
            )
        errors = []
        # the bar counts the work of a run, so that its time left holds for runs of different length
        bar = progress_bar(sum(map(_work, missing)), "training", "sample", progress and len(missing) > 1)
        bar.unit_scale = True
        with bar:
            for run, result in _whoever_trains(missing, one_pass):
                if isinstance(result, OSError) and not isinstance(
                    result, FileNotFoundError | ChildProcessError
                ):
                    raise result  # the disk is full, or the folder cannot be written: so it is for the other runs
                if isinstance(result, Exception):
                    errors.append(result)
                else:
                    found[run.hash] = result
                bar.set_postfix_str(
                    f"{sum(found[r.hash] is not None for r in missing)} of {len(missing)} runs", False
                )
                bar.update(_work(run))
        if errors:
            if len(errors) > 1:
                errors[0].add_note(
                    f"{len(errors)} runs failed; this is the first. The other runs are stored."
                )
            raise errors[0]
    return [found[run.hash] for run in runs]


def _whoever_trains(runs, one_pass) -> Iterator[tuple[Run, History | Exception]]:
    """Each run with its result: first those that nobody else trains, then, waiting for them, the others."""
    busy = []
    for run, result in one_pass(runs, wait=False):
        if result is None:
            busy.append(run)
        else:
            yield run, result
    if busy:
        yield from one_pass(busy, wait=True)


def default_workers(device: str | None) -> int:
    return 1 if pick_device(device).type != "cpu" else usable_cores()


def _work(run: Run) -> int:
    """Training samples that a run passes through its network."""
    return run.epochs * n_train(run)


def n_train(run: Run) -> int:
    """Training images of a run, looked up only where the data set's size is not known beforehand."""
    return run.n_train or data.training_shape(run.dataset)[0]


def _trained(
    runs, wait, device, workers, progress, store
) -> Iterator[tuple[Run, History | Exception | None]]:
    """Each run with its History, stored, or with what it raised, or with None where another process trains it."""
    if workers == 1:
        for run in runs:
            yield run, _attempt(run, store, wait, device, progress and len(runs) == 1)
        return
    threads = max(1, usable_cores() // workers)
    # loky: workers need no __main__ guard, so that notebooks and scripts can use them, and a killed one is reported
    pool = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
    folder = str(
        data.data_folder()
    )  # the workers outlive a sweep, and keep the environment that they started with
    try:
        yield from pool(delayed(_train_in_worker)(run, store, wait, device, threads, folder) for run in runs)
    except TerminatedWorkerError:
        raise ChildProcessError(
            "a worker process was killed, perhaps for want of memory; finished runs are stored, and the same call goes on"
        ) from None


def _on_ray(
    runs, wait, device, address, gpus_per_run, store
) -> Iterator[tuple[Run, History | Exception | None]]:
    try:
        import ray
    except ImportError:
        raise ValueError("ray is not installed: pip install -e '.[cluster]'") from None

    package = str(Path(__file__).parent)
    ray.init(
        address=address, runtime_env={"py_modules": [package]}, log_to_driver=False, logging_level="error"
    )
    queue, on_nodes = list(reversed(runs)), {}
    try:
        resources = {"num_cpus": 1, "num_gpus": gpus_per_run if device == "cuda" else 0}
        task = ray.remote(**resources)(_train_on_node)  # started again elsewhere where its node is lost
        while queue or on_nodes:
            while queue and len(on_nodes) < CLAIMS:
                run, claim = queue.pop(), contextlib.ExitStack()
                claimed = claim.enter_context(store.claim(run, wait))
                history = store.get(run) if claimed else None
                if claimed and not history:
                    on_nodes[task.remote(run, device, store.checkpoint(run))] = run, claim
                    continue
                claim.close()
                yield run, history
            for done in ray.wait(list(on_nodes), num_returns=1)[0] if on_nodes else ():
                run, claim = on_nodes.pop(done)
                with claim:
                    try:
                        result = ray.get(done)
                        if isinstance(result, History):
                            store.put(result)
                    except ray.exceptions.RayError as error:
                        result = ChildProcessError(
                            f"run {run.hash} was lost again and again: {type(error).__name__}"
                        )
                    except OSError as error:
                        result = error
                    yield run, result
    finally:
        for _, claim in on_nodes.values():
            claim.close()
        ray.shutdown()


def _train_on_node(run: Run, device: str | None, checkpoint: Path) -> History | Exception:
    """Keeps checkpoints where the node sees the store's folder: on the same machine, or on a disk that all share."""
    import ray

    torch.set_num_threads(1)
    try:
        history = train(
            run, device, progress=False, checkpoint=checkpoint if checkpoint.parent.is_dir() else None
        )
    except Exception as error:
        return error
    history.info["node"] = ray.get_runtime_context().get_node_id()
    return history


def _train_in_worker(run: Run, store: Store, wait: bool, device: str | None, threads: int, data_folder: str):
    os.environ["NCUTILS_DATA"] = data_folder
    torch.set_num_threads(threads)  # what a wide network's default is
    return run, _attempt(run, store, wait, device, False)


def _attempt(run, store, wait, device, progress) -> History | Exception | None:
    """Trains and stores a run, unless another process has just done so, or, without `wait`, is about to: then None."""
    try:
        with store.claim(run, wait) as claimed:
            history = store.get(run) if claimed else None
            if claimed and not history:
                history = train(run, device, None, progress, store.checkpoint(run))
                store.put(history)
            return history
    except Exception as error:
        return error


def seconds_a_run(runs: list[Run], device: str | None = None) -> dict[Run, float]:
    """Expected seconds of each run on one worker here: three steps of each kind of network, timed now on noise."""
    device, seconds = pick_device(device), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in runs:
            seconds[run] = (
                run.epochs * math.ceil(n_train(run) / run.batch_size) * 1.1 * _seconds_a_step(run, device)
            )
    finally:
        torch.set_num_threads(threads)
    return seconds


_steps: dict[tuple, float] = {}


def _seconds_a_step(run: Run, device: torch.device) -> float:
    try:
        _, channels, height, width = data.training_shape(run.dataset)
    except ValueError:  # a folder that is not here yet
        channels, height, width = 3, 32, 32
    height, width = run.image_size or height, run.image_size or width
    whole = min(run.batch_size, n_train(run))
    batch = min(whole, max(2, 2**20 // (height * width)))  # of large images a few, so that they fit
    shape = (batch if run.arch == "ufm" else 3 * batch, channels, height, width)
    kind = (run.arch, run.width, shape, whole, run.precision, run.rule)
    if kind not in _steps:
        timed = run.model_copy(update={"batch_size": batch})
        images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        labels = torch.arange(len(images), device=device) % 10
        model = make_model(run, data.Dataset(images, labels, images, labels, 10), device)
        step, order = Step(model, run_optimizer(model, run), timed), torch.Generator().manual_seed(0)
        epoch(step, images, labels, order)  # the first pass sets things up
        start = time.perf_counter()
        epoch(step, images, labels, order)
        _steps[kind] = (time.perf_counter() - start) * whole / len(images)
    return _steps[kind]
