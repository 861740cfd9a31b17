"""Paired timing, and the rows of the one table that `make bench` prints and keeps.

Both sides of a pair run in one process, one after the other, so that a busy machine slows both. Each script holds
`rows()` and may run alone; `NCUTILS_TOY=1` shrinks every size, which tests use.
"""

import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's own messages

import torch

from ncutils.machine import device_name

TOY = bool(os.environ.get("NCUTILS_TOY"))
PAIRS = 2 if TOY else 5


def paired(ours, usual, pairs: int = PAIRS, warm_up: bool = True) -> tuple[float, float, float]:
    """Medians of ours and of the usual way [s], and the median of the ratio usual / ours over the pairs."""
    if warm_up:
        ours(), usual()
    times = [(seconds(ours), seconds(usual)) for _ in range(pairs)]
    return (*(statistics.median(side) for side in zip(*times)), statistics.median(b / a for a, b in times))


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call, repeats: int = PAIRS) -> float:
    return statistics.median(seconds(call) for _ in range(repeats))


def slope(call, sizes) -> float:
    """Exponent of the growth of call(size)'s time, by least squares of the logarithms; the sizes take turns."""
    times = [[seconds(functools.partial(call, n)) for n in sizes] for _ in range(PAIRS)]
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(times, dtype=torch.float64).median(0).values.log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def profile(call, top: int = 5) -> str:
    """The operators that take most of a call's time, each with its share."""
    with torch.profiler.profile() as taken:
        call()
    found = sorted(taken.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in found)
    return ", ".join(
        f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / whole:.0%}" for e in found[:top]
    )


def row(
    what, figure, goal=None, *, at_most=False, unit="", against="", usual=None, ours=None, why=""
) -> dict:
    """A line of the table. `goal` is what the figure must reach, or with at_most stay under; None: only reported."""
    reached = None if goal is None else bool(figure <= goal if at_most else figure >= goal)
    sign = "" if goal is None else "at most " if at_most else "at least "
    return {
        "what": what,
        "against": against,
        "usual": "" if usual is None else duration(usual),
        "here": "" if ours is None else duration(ours),
        "figure": f"{figure:.3g}{unit}",
        "goal": "" if goal is None else f"{sign}{goal:g}{unit}",
        "reached": {True: "yes", False: "no", None: ""}[reached],
        "why": why,
    }


def duration(s: float) -> str:
    return f"{s:.3g} s" if s >= 1 else f"{1e3 * s:.3g} ms"


def machine() -> str:
    return f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(rows: list[dict]) -> str:
    columns = [name for name in rows[0] if name not in ("why", "script")]
    lines = [columns, *([r[c] for c in columns] for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def main(rows) -> None:
    """What a script does when it is run: prints its rows, and writes them to the file that was named."""
    found = list(rows())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    else:
        print(f"{machine()}; medians of {PAIRS} pairs")
        print(table(found))
        print(*(f"{r['what']}: {r['why']}" for r in found if r["why"]), sep="\n")
