"""Closed forms of the paper's section 3, in float64 numpy."""

from __future__ import annotations

import numpy as np


def nc0_law(lr, wd: float, momentum: float = 0.0, coupled: bool = True) -> np.ndarray:
    """Exact NC0 of SGD (coupled) or SGDW (decoupled) with momentum, relative to its initial value.

    The rows of the cross-entropy gradient of W sum to zero (Lemma E.4), so that s = W^T 1 moves by weight decay alone,
    whatever the backbone and the data. With v the momentum buffer's row sum, v_0 = 0:
        coupled    v <- beta v + wd s,  s <- s - lr v        (the update of Theorem 3.1)
        decoupled  s <- (1 - lr wd) s
    The theorem bounds this from above; here it is iterated as it stands.

    Arguments: lr, the learning rate of each step [T] (see `training.lr_per_step`); wd >= 0; momentum in [0, 1).
    Returns s_t / s_0 [T + 1], starting with 1 and signed: |s_t| / |s_0| is NC0_t / NC0_0.
    """
    lr = np.asarray(lr, dtype=np.float64)
    if lr.ndim != 1 or lr.size == 0 or not (lr >= 0).all():
        raise ValueError("lr must hold the learning rate of each step: at least one, none negative")
    if not wd >= 0:
        raise ValueError(f"wd = {wd!r} is not allowed: weight decay must be 0 or more")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum = {momentum!r} is not allowed: it must lie in [0, 1)")
    if not coupled:
        return np.concatenate([[1.0], np.cumprod(1 - lr * wd)])
    s, v = 1.0, 0.0
    law = np.ones(lr.size + 1)
    for t, step in enumerate(lr.tolist()):
        v = momentum * v + wd * s
        s -= step * v
        law[t + 1] = s
    return law


def simplex_etf(K: int) -> np.ndarray:
    """K unit vectors in R^(K-1) with pairwise cosine -1/(K-1), the rows of the result [K, K-1]; they sum to zero."""
    if K < 2:
        raise ValueError(f"K = {K!r} is not allowed: a simplex needs K >= 2 vertices")
    # rows of I - J/K lie in the (K-1)-dimensional complement of 1; the QR basis gives their coordinates there
    basis = np.linalg.qr(np.column_stack([np.ones(K), np.eye(K)[:, 1:]]))[0][:, 1:]
    return basis * np.sqrt(K / (K - 1))
