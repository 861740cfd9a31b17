"""Which rules keep the row sums of a softmax head's weights: the leak of any optimizer that torch or pytorch-optimizer names.

`python -m ncutils.census > results/census.csv` measures all of them, in two to four minutes of one core.
"""

from __future__ import annotations

import inspect
import math
import time
import warnings

import torch
import torch.nn.functional as F

from ncutils.optimizers import RULES, find_rule, make_optimizer
from ncutils.theory import row_sums

LOSSES = {
    "cross-entropy": F.cross_entropy,
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "squared error": lambda z, y: F.mse_loss(z, F.one_hot(y, z.shape[1]).to(z.dtype)),
}


def own_settings(rule: str) -> tuple[float, float]:
    """Learning rate and momentum (or first beta) that a rule has when nothing is said; 0.01 and 0.9 for those of RULES."""
    if rule in RULES:
        return 0.01, 0.9
    settings = inspect.signature(find_rule(rule)).parameters
    lr = settings["lr"].default if "lr" in settings else 0.01
    betas = settings["betas"].default if "betas" in settings else (0.0,)
    momentum = settings["momentum"].default if "momentum" in settings else betas[0]
    return lr or 0.01, momentum or 0.0


def leak(rule: str, dtype=torch.float64, loss: str = "cross-entropy", k: int = 10, steps: int = 300) -> float:
    """Share of a rule's movement that is row sum: ||1^T (W_T - W_0)|| / (sqrt(K) ||W_T - W_0||), between 0 and 1.

    `steps` full-batch steps of linear classification (W [K, 64], 500 Gaussian samples about K means) without decay, at the rule's
    own learning rate and momentum. A movement in a random direction has 1 / sqrt(K). Raises whatever the rule raises.
    """
    p, n, generator = 64, 500, torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    y = torch.arange(n) % k
    x = normal(k, p)[y] / 2 + normal(n, p)
    start = normal(k, p) / p**0.5
    w = torch.nn.Parameter(start.clone())
    lr, momentum = own_settings(rule)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)  # of rules that draw numbers
        optimizer = make_optimizer([w], rule, lr=lr, momentum=momentum, head=[w])
        getattr(optimizer, "train", lambda: None)()  # of rules with a second copy of the weights
        for _ in range(steps):
            optimizer.zero_grad()
            LOSSES[loss](x @ w.T, y).backward()
            optimizer.step()
        getattr(optimizer, "eval", lambda: None)()
    moved = (w.detach() - start).double()
    if not moved.isfinite().all():
        raise ArithmeticError("it diverges at its own settings")
    if not moved.any():
        raise ArithmeticError("it does not move a single matrix")
    return float(moved.sum(0).norm() / (k**0.5 * moved.norm()))


# a column of the census: what is not the usual in it
COLUMNS: dict[str, dict] = {
    "float64": {},
    "float32": {"dtype": torch.float32},
    "k2": {"k": 2},
    "label_smoothing": {"loss": "label smoothing"},
    "squared_error": {"loss": "squared error"},
}


def census(rules: list[str] | None = None) -> list[dict]:
    """A row a rule (default: all of `theory.row_sums`): its `leak` in each of COLUMNS, nan where it has none, the
    reason of the first that is missing, else "", and the seconds of CPU that it took."""
    rows = []
    for rule in row_sums() if rules is None else rules:
        row: dict = {"rule": rule}
        started, why_not = time.process_time(), ""
        for column, how in COLUMNS.items():
            try:
                row[column] = leak(rule, **how)
            except Exception as error:  # a stranger's rule may fail in any way
                row[column] = math.nan
                why_not = why_not or " ".join(str(error).split()) or type(error).__name__
        rows.append(row | {"why_not": why_not, "seconds": round(time.process_time() - started, 2)})
    return rows


if __name__ == "__main__":
    import pandas as pd

    torch.set_num_threads(1)
    print(pd.DataFrame(census()).to_csv(index=False, float_format="%.4g"), end="")
