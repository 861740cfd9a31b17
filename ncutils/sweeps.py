"""Many runs: a grid read from a file, what is stored read, what is missing trained, side by side."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import numbers
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ncutils import data, training
from ncutils.files import write_whole
from ncutils.machine import device_name, pick_device, progress_bar, set_for_training, usable_cores
from ncutils.optimizers import OWN_RULES, RULES
from ncutils.runs import History, Run, same_steps
from ncutils.step import Step, make_model, run_optimizer
from ncutils.store import Store
from ncutils.training import train

# held at most at once for a Ray cluster: each is an open file, of which many systems allow 1,024
CLAIMS = 500
RESTARTS = 3  # of a run whose node is lost


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
    store, runs = store or Store(), list(runs)
    if workers is not None and (not isinstance(workers, numbers.Integral) or workers < 1):
        raise ValueError(
            f"workers = {workers!r} is not allowed: it must be a whole number, 1 or more, or none"
        )
    found: dict[str, Any] = {run.hash: store.get(run) for run in runs}
    missing = list({run.hash: run for run in runs if found[run.hash] is None}.values())
    for run in runs:
        if found[run.hash]:
            store.clear(run)
    if not missing:
        return [found[run.hash] for run in runs]
    training.checkpoint_seconds()  # refused here, not once a run
    if ray:
        one_pass = functools.partial(_on_ray, address=ray, gpus_per_run=gpus_per_run)
    else:
        for name in sorted({run.dataset for run in missing}):
            data.splits(name)  # a download, or its failure, comes before any worker starts
        workers = min(workers or default_workers(device), len(missing))
        one_pass = functools.partial(_trained, workers=workers, progress=progress)
    one_pass = functools.partial(one_pass, store=store, device=device)
    errors, done, of_a_run = [], 0, (FileNotFoundError, ChildProcessError)
    # the bar counts the work of a run, so that its time left holds for runs of different length
    bar = progress_bar(sum(map(_work, missing)), "training", "sample", progress and len(missing) > 1)
    bar.unit_scale = True
    with bar:
        for run, result in _whoever_trains(missing, one_pass):
            if isinstance(result, OSError) and not isinstance(result, of_a_run):
                raise result  # the disk is full, or the folder cannot be written: so it is for the other runs
            if isinstance(result, Exception):
                errors.append(result)
            else:
                found[run.hash] = result
                done += 1
            bar.set_postfix_str(f"{done} of {len(missing)} runs", False)
            bar.update(_work(run))
    if errors:
        if len(errors) > 1:
            errors[0].add_note(f"{len(errors)} runs failed; this is the first. The others are stored.")
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
    """One a core, or one on a GPU."""
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
    # workers outlive a sweep, and keep the environment that they started with
    shared = store, wait, device, threads, str(data.data_folder()), _known()
    try:
        yield from pool(delayed(_train_in_worker)(run, *shared) for run in runs)
    except TerminatedWorkerError:
        raise ChildProcessError(
            "a worker process was killed, perhaps for want of memory; finished runs are stored, and the same call goes on"
        ) from None


def _on_ray(
    runs, wait, device, address, gpus_per_run, store
) -> Iterator[tuple[Run, History | Exception | None]]:
    """Nodes need not see the store: a run takes its checkpoint along, and sends new ones home as it sends its History."""
    ray, queue = _joined(address), list(reversed(runs))
    on_nodes: dict = {}
    try:
        gpus = gpus_per_run if type(device) is int or str(device).startswith("cuda") else 0
        mail = _mail(ray)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_train_on_node)

        def start(run: Run):
            checkpoint = store.checkpoint(run)
            state = checkpoint.read_bytes() if checkpoint.exists() else None
            return task.remote(run, "cuda" if gpus else device, state, mail, _known())

        letter = mail.actor.get.remote()
        while queue or on_nodes:
            while queue and len(on_nodes) < _in_flight(ray.cluster_resources(), gpus):
                run, claim = queue.pop(), contextlib.ExitStack()
                claimed = claim.enter_context(store.claim(run, wait))
                history = store.get(run) if claimed else None
                if claimed and not history:
                    on_nodes[start(run)] = run, claim, RESTARTS
                    continue
                claim.close()
                yield run, history
            if not on_nodes:
                continue
            (done,), _ = ray.wait([letter, *on_nodes], num_returns=1)
            if done == letter:
                name, state = ray.get(letter)
                letter = mail.actor.get.remote()
                for run, _, _ in on_nodes.values():
                    if run.hash == name:  # else it has ended meanwhile
                        _keep(ray, store.checkpoint(run), state)
                continue
            run, claim, restarts = on_nodes.pop(done)
            try:
                result = ray.get(done)
                if isinstance(result, History):
                    _told_of_versions(result)
                    store.put(result)
            except ray.exceptions.RayError as error:
                if restarts:  # from the newest checkpoint that has come home
                    on_nodes[start(run)] = run, claim, restarts - 1
                    continue
                kind = type(error).__name__
                result = ChildProcessError(f"run {run.hash} was lost again and again: {kind}")
            except OSError as error:
                result = error
            claim.close()
            yield run, result
    finally:
        for _, claim, _ in on_nodes.values():
            claim.close()
        ray.shutdown()


def _joined(address: str):
    """The module ray, as one who is in the cluster. Raises ValueError where it is not installed, or nobody lets it in."""
    try:
        import ray
    except ImportError:
        raise ValueError("ray is not installed: pip install -e '.[cluster]'") from None

    environment = {"NCUTILS_CHECKPOINT_SECONDS": str(training.CHECKPOINT_SECONDS)}
    for_nodes = {"py_modules": [str(Path(__file__).parent)], "env_vars": environment}
    try:
        ray.init(address=address, runtime_env=for_nodes, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError) as error:  # another version of Ray or Python, or nobody there
        ray.shutdown()
        raise ValueError(f"ray = {address!r} cannot be joined: {' '.join(str(error).split())}") from None
    return ray


def _mail(ray):
    """A queue on this node, which takes no core."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _in_flight(resources: dict[str, float], gpus: float) -> int:
    """Runs to hand to a cluster of these resources at once: twice what it has room for, so that no node waits for the next."""
    room = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 0)
    return min(CLAIMS, max(2, int(2 * room)))


def _keep(ray, checkpoint: Path, state) -> None:
    """Writes a checkpoint that a node sent, unless that node is lost or the disk is full: the run may still end well."""
    try:
        write_whole(checkpoint, ray.get(state))
    except (ray.exceptions.RayError, OSError) as error:
        warnings.warn(f"training goes on without a new checkpoint: {error}", stacklevel=3)


def _told_of_versions(history: History) -> None:
    """Warns of a node with another torch, under which the same Run need not give the same numbers."""
    there, here = (version.partition("+")[0] for version in (history.info["torch"], torch.__version__))
    if there != here:
        warnings.warn(f"a node has torch {there}, this machine {here}: numbers may differ", stacklevel=3)


def _train_on_node(run: Run, device: str | None, state: bytes | None, mail, known) -> History | Exception:
    """Trains from a checkpoint's content, if any; new checkpoints are sent by `mail` as they are written."""
    import ray

    torch.set_num_threads(1)
    _learn(known)
    try:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint"
            if state:
                checkpoint.write_bytes(state)
            history = train(
                run, device, None, False, checkpoint, lambda content: mail.put((run.hash, ray.put(content)))
            )
    except Exception as error:  # whatever it is, it must not end the other runs
        return error
    history.info["node"] = ray.get_runtime_context().get_node_id()
    return history


def _known() -> tuple[dict, dict]:
    """Rules and data sets that a notebook has added to this process: a new one has the others, and what it unpickled would
    not be the same object, for which it has data at hand."""
    here = (RULES, OWN_RULES), (data.SOURCES, data.OWN_SOURCES)
    rules, sources = ({k: v for k, v in now.items() if v is not own.get(k)} for now, own in here)
    return rules, sources


def _learn(known: tuple[dict, dict]) -> None:
    """Takes over what another process knows."""
    rules, sources = known
    RULES.update(OWN_RULES | rules)
    data.SOURCES.update(data.OWN_SOURCES | sources)


def _train_in_worker(run: Run, store, wait, device, threads, folder, known) -> tuple:
    _learn(known)
    os.environ["NCUTILS_DATA"] = folder
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
    except Exception as error:  # whatever it is, it must not end the other runs
        return error


def plan(entries: list[tuple[str, Run]], missing: list[Run], device: str | None, workers: int | None) -> str:
    """How many runs of a grid differ in mathematics (`same_steps`), its counts by setting, and what its missing runs would
    take: their number times what a step costs here and now."""
    import pandas as pd

    rows = [(run.arch, run.dataset, name, 1, run.hash) for name, run in entries]
    counts = pd.DataFrame(rows, columns=["arch", "dataset", "optimizer", "runs", "hash"])
    counts["distinct"] = ~counts["hash"].duplicated()
    counts["stored"] = counts["distinct"] & ~counts["hash"].isin([run.hash for run in missing])
    by_setting = counts.drop(columns="hash").groupby(["arch", "dataset", "optimizer"], sort=False).sum()
    differ = len({same_steps(run).hash for _, run in entries})
    text = f"{differ} differ in mathematics (SGD and SGDW without momentum take the same steps)\n"
    text += by_setting.to_string()
    if not missing:
        return text
    seconds = sum(seconds_a_run(missing, device).values())
    workers = min(workers or default_workers(device), len(missing))
    where = pick_device(device)
    return (
        f"{text}\n{len(missing)} to train: {_duration(seconds)} of one worker, "
        f"{_duration(seconds / workers)} with {workers}, by the time of a step of each kind of network on this "
        f"{'GPU' if where.type == 'cuda' else 'CPU'} ({device_name(where)})"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def seconds_a_run(runs: list[Run], device: str | None = None) -> dict[Run, float]:
    """Expected seconds of each run on one worker here: an ordinary step of each kind of network, timed now on noise, its
    gradient on as many images as take a moment. Images read from disk and a GPU's graphs (`step.Step`) are not counted."""
    device, seconds = pick_device(device), {}
    bar = progress_bar(len(runs), "timing a step of each kind of network", "run")
    with bar, set_for_training(device, 1, wide=False):
        for run in runs:
            steps = run.epochs * math.ceil(n_train(run) / run.batch_size)
            seconds[run] = 1.1 * steps * _seconds_a_step(run, device)
            bar.update()
    return seconds


_gradients: dict[tuple, float] = {}
_updates: dict[tuple, float] = {}


def _seconds_a_step(run: Run, device: torch.device) -> float:
    try:
        _, channels, height, width = data.training_shape(run.dataset)
    except ValueError:  # a folder that is not here yet
        channels, height, width = 3, 32, 32
    height, width = run.image_size or height, run.image_size or width
    whole = min(run.batch_size, n_train(run))
    # of large images a few, so that they fit; on a CPU fewer of a wide network, so that nobody waits
    few = max(2, (2**19 // run.width if device.type == "cpu" else 2**20) // (height * width))
    shape = (whole if run.arch == "ufm" else min(whole, few), channels, height, width)
    network = (run.arch, run.net, run.width, shape, run.precision, device)
    # an update by the paper's rules takes next to nothing beside the gradient of convolutions
    rule = None if run.rule in OWN_RULES and run.arch not in ("mlp", "ufm") else run.rule
    if network not in _gradients or (rule and (*network, rule) not in _updates):
        images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        labels = torch.arange(len(images), device=device) % 10
        noise = data.Dataset(images, labels, images, labels, 10)
        training.check_memory(run, noise, device)  # as `train` does, or it would be filled
        model = make_model(run, noise, device)
        if network not in _gradients:
            step = Step(model, model, run)  # in an optimizer's place: a gradient asks of it `zero_grad` alone
            _gradients[network] = _seconds(lambda: step.gradient(images, labels), device)
        if rule:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            _updates[(*network, rule)] = _seconds(run_optimizer(model, run).step, device)
    return _gradients[network] * whole / shape[0] + _updates.get((*network, rule), 0)


def _seconds(call, device: torch.device) -> float:
    """Of the second of two calls: the first sets things up."""
    for _ in range(2):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - start
