"""What the code runs on: device, cores, threads, memory; and whether someone watches."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch


def pick_device(device: str | int | torch.device | None = None, precision: str = "float32") -> torch.device:
    """The device asked for, a whole number for a GPU's, or the GPU if there is one, or the CPU. Raises ValueError where it is
    not to be had, or does not compute in `precision`."""
    try:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        # torch would take True for a number, too
        device = torch.device(f"cuda:{device}" if type(device) is int else str(device))
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda"):  # Apple's has no float64, as metrics need, "meta" no numbers
            raise RuntimeError
    except (RuntimeError, AssertionError, ImportError) as error:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        none = "; no GPU is to be seen (CUDA_VISIBLE_DEVICES)"
        gpus = f" or 'cuda:0' to 'cuda:{found - 1}'" if found else none
        # one that is there may be full, or lost
        why = f" ({str(error).splitlines()[0]})" if found and str(error) else ""
        raise ValueError(
            f"device = {str(device)!r} is not to be had here{why}: use 'cpu' or none{gpus}"
        ) from None
    if precision == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                why = f"{device_name(device)} does not compute in bfloat16"
                raise ValueError(f"precision = 'bf16' is not allowed here: {why}, use 'float32'")
    return device


def device_name(device: torch.device) -> str:
    """What the device is called, without the machine's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by a container's quota, rounded up."""
    from joblib import cpu_count

    try:
        return cpu_count()
    except ValueError:
        told = os.environ.get("LOKY_MAX_CPU_COUNT")
        raise ValueError(f"LOKY_MAX_CPU_COUNT = {told!r} is not allowed: it must be a whole number") from None


def _flush_denormals_in_all_threads() -> None:
    """Starts torch's worker threads with denormal numbers flushed to zero, as `train` has them in its own thread.

    A thread takes this flag from the one that starts it, once and for all, so it must come before the first work that is
    shared among threads: when this module is imported. Where softmax and decay leave gradients and weights at 1e-40, a
    step of the feature model takes five times as long without it.
    """
    before = _flushes_denormals()
    torch.set_flush_denormal(True)
    torch.zeros(2**15 * torch.get_num_threads()).add_(1)  # large enough for all of them
    torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    """Whether this thread takes denormal numbers for zero; torch has no question for it."""
    return float(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1) == 0


_flush_denormals_in_all_threads()


@contextlib.contextmanager
def set_for_training(device: torch.device, threads: int | None, wide: bool) -> Iterator[None]:
    """Torch's settings while a network trains, put back afterwards: threads (default: as set; one for a network that is not
    wide), denormal numbers as zero (a network that decays to zero would otherwise take half as long again), a GPU's fastest
    kernels, and memory kept from step to step where it is much. ValueError for a number of threads that is none."""
    if threads is not None and (type(threads) is bool or not isinstance(threads, int) or threads < 1):
        raise ValueError(
            f"threads = {threads!r} is not allowed: it must be a whole number, 1 or more, or none"
        )
    try:
        with contextlib.ExitStack() as put_back:
            put_back.callback(torch.set_num_threads, torch.get_num_threads())
            put_back.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            put_back.callback(torch.set_default_dtype, torch.get_default_dtype())
            put_back.callback(torch.set_flush_denormal, _flushes_denormals())
            torch.set_num_threads(threads or (min(torch.get_num_threads(), usable_cores()) if wide else 1))
            torch.backends.cudnn.benchmark = True
            torch.set_default_dtype(torch.float32)
            torch.set_flush_denormal(True)
            if wide and device.type == "cpu":
                put_back.callback(keep_freed_memory, False)
                keep_freed_memory(True)
            if device.type == "cuda":
                put_back.enter_context(torch.cuda.device(device))
            # orders and seeds are drawn on the CPU, whatever `torch.set_default_device` says; such a context costs time in
            # every call
            if torch.get_default_device().type != "cpu":
                put_back.enter_context(torch.device("cpu"))
            # a Run alone says what is computed in bfloat16; a cache of cast weights would last as long as this context
            put_back.enter_context(torch.autocast(device.type, enabled=False, cache_enabled=False))
            yield
    except torch.OutOfMemoryError as error:
        full = f"the memory of {device_name(device)} is full"
        raise MemoryError(f"{full}: use a smaller width or batch_size") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # a CPU's
            raise MemoryError("the machine's memory is full: use a smaller width or batch_size") from error
        # AcceleratorError, or what the libraries of a GPU report without that class
        of_device = isinstance(error, torch.AcceleratorError) or re.search(
            r"CUDA error|cuDNN error|CUBLAS_STATUS|CUSOLVER_STATUS", str(error)
        )
        if not of_device:
            raise
        why = str(error).splitlines()[0]
        raise OSError(  # it may work again after a new start
            f"the {device.type} device failed ({why}); the same call goes on from the last checkpoint"
        ) from error


def keep_freed_memory(keep: bool) -> None:
    """Whether glibc keeps large freed blocks for the next step, or returns them to the system as it usually does.

    The system clears each page anew when it is next used, which takes a seventh of a wide network's step on a CPU.
    Without glibc nothing happens. "Usually" is the state that glibc itself reaches once blocks of 16 MB were freed.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        glibc = ctypes.CDLL(None)
        glibc.mallopt(mmap_threshold, 2**24)
        glibc.mallopt(mmap_max, 0 if keep else 2**16)
        glibc.mallopt(trim_threshold, 2**31 - 1 if keep else 2**25)
        if not keep:
            glibc.malloc_trim(0)


def free_memory(limits: Path = Path("/sys/fs/cgroup"), device: torch.device | None = None) -> int:
    """Bytes that this process can still take: of a GPU's memory, the machine's, or a container's share of that."""
    if device and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for names in (  # cgroup v2, v1
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
            limit, used, stat = ((limits / name).read_text("ascii") for name in names)
            # v1's `used` is that of the groups below, too, as its "total", which comes last
            cached = re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE) or ["0"]
            free = min(free, int(limit) - int(used) + int(cached[-1]))
    return free


def live_front_end() -> bool:
    """Whether a person sits before this kernel: told by the front end's readiness to answer input()."""
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))


def progress_bar(total: int, description: str, unit: str, show: bool = True):
    """A tqdm bar in a live notebook or in the terminal, none elsewhere: an executed notebook keeps no trace of it.

    A kernel that papermill started from a terminal draws there, not into the notebook: an ipykernel stream's fileno is
    the process's own stderr.
    """
    options: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "leave": False}
    if show and live_front_end():
        from tqdm.auto import tqdm as in_a_notebook

        return in_a_notebook(**options)
    from tqdm import tqdm

    terminal = None
    with contextlib.suppress(OSError, AttributeError, ValueError):
        if show and os.isatty(sys.stderr.fileno()):
            terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="locale")
    return tqdm(**options, file=terminal, disable=terminal is None, dynamic_ncols=True)
