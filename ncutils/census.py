"""Which rules keep the row sums of a softmax head's weights: the leak of any optimizer that torch or pytorch-optimizer names."""

from __future__ import annotations

import inspect
import time
import warnings

import torch
import torch.nn.functional as F

from ncutils.optimizers import RULES, find_rule, make_optimizer

LOSSES = {
    "cross-entropy": F.cross_entropy,
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "squared error": lambda z, y: F.mse_loss(z, F.one_hot(y, z.shape[1]).to(z.dtype)),
}


def names() -> list[str]:
    """All rules by name: those of RULES, torch's, pytorch-optimizer's, in alphabetical order; "-all" where Muon takes the head."""
    import pytorch_optimizer

    of_torch = {name.lower() for name, value in vars(torch.optim).items() if isinstance(value, type)}
    known = {*RULES, *of_torch, *pytorch_optimizer.get_supported_optimizers()} - {"optimizer"}
    known |= {f"{name}-all" for name in known if is_rule(f"{name}-all")}
    return sorted(known)


def is_rule(name: str) -> bool:
    """Whether `optimizers.find_rule` knows it."""
    try:
        find_rule(name)
    except ValueError:
        return False
    return True


def own_settings(rule: str) -> tuple[float, float]:
    """Learning rate and momentum (or first beta) that a rule has when nothing is said; 0.01 and 0.9 for those of RULES."""
    if rule in RULES:
        return {"sgd": 0.01, "adam": 0.001, "signum": 0.001}.get(rule, 0.01), 0.9
    settings = inspect.signature(find_rule(rule)).parameters
    lr = settings["lr"].default if "lr" in settings else 0.01
    betas = settings["betas"].default if "betas" in settings else (0.0,)
    momentum = settings["momentum"].default if "momentum" in settings else betas[0]
    return lr or 0.01, momentum or 0.0


def leak(
    rule: str,
    dtype: torch.dtype = torch.float64,
    loss: str = "cross-entropy",
    k: int = 10,
    p: int = 64,
    n: int = 500,
    steps: int = 300,
    seed: int = 0,
) -> float:
    """Share of a rule's movement that is row sum: ||1^T (W_T - W_0)|| / (sqrt(K) ||W_T - W_0||), between 0 and 1.

    `steps` full-batch steps of linear classification (W [K, p], n Gaussian samples about K means) without decay, at the rule's
    own learning rate and momentum. A movement in a random direction has 1 / sqrt(K). Raises whatever the rule raises.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    y = torch.arange(n) % k
    x = normal(k, p)[y] / 2 + normal(n, p)
    start = normal(k, p) / p**0.5
    w = torch.nn.Parameter(start.clone())
    lr, momentum = own_settings(rule)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(seed)  # of rules that draw numbers
        optimizer = make_optimizer([w], rule, lr=lr, momentum=momentum, head=[w])
        for mode in ("train", "eval"):  # rules with a second copy of the weights
            getattr(optimizer, mode, lambda: None)()
            for _ in range(steps if mode == "train" else 0):
                optimizer.zero_grad()
                LOSSES[loss](x @ w.T, y).backward()
                optimizer.step()
    moved = (w.detach() - start).double()
    return float(moved.sum(0).norm() / (k**0.5 * moved.norm()))


def census(rules: list[str] | None = None) -> list[dict]:
    """A row a rule (default: all `names`): its leak in float64 and float32, at K = 2, under label smoothing and squared error,
    the reason where it could not be tried, else "", and the seconds that it took."""
    rows = []
    for rule in names() if rules is None else rules:
        started = time.perf_counter()
        row: dict[str, str | float] = {"rule": rule, "why_not": ""}
        try:
            row["float64"] = leak(rule)
            row["float32"] = leak(rule, torch.float32)
            row["k2"] = leak(rule, k=2)
            row["label_smoothing"] = leak(rule, loss="label smoothing")
            row["squared_error"] = leak(rule, loss="squared error")
        except Exception as error:  # a stranger's rule may fail in any way
            row["why_not"] = " ".join(str(error).split()) or type(error).__name__
        row["seconds"] = round(time.perf_counter() - started, 2)
        rows.append(row)
    return rows
