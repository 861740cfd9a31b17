"""Paired timing: both sides in one process, alternating, so that a busy machine slows both."""

import statistics
import time

import torch

from ncutils.training import device_name


def paired(ours, usual, pairs: int) -> tuple[float, float, float]:
    """Medians of ours and of the usual way [s], and the median of the ratio usual / ours over the pairs."""
    ours(), usual()  # warm-up
    times = [(seconds(ours), seconds(usual)) for _ in range(pairs)]
    return (*(statistics.median(side) for side in zip(*times)), statistics.median(b / a for a, b in times))


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def machine() -> str:
    return f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}"
