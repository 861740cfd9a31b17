"""Closed forms and simulators of the paper's theorems, in numpy.

alpha = ||W^T 1||_2^2 / K = NC0^2 / K throughout (the appendix's definition). Hyper-parameters may be arrays: they
broadcast, time comes first in what is returned, and a whole grid is one call.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import numpy as np


@functools.cache
def row_sums() -> dict[str, tuple[str, str]]:
    """What the theorem on equivariant rules says of each rule that torch and pytorch-optimizer 4.1 name, read off its code: a class, and why.

    Where all gradients of W have zero row sums and nothing decays, 1^T W
    - "keeps": stays, as steps are sums of gradients times scalars or matrices from the right;
    - "exact": stays in exact arithmetic only, since the rule normalises the null direction (Muon; SOAP, Alice and Conda where gradients have rank K - 1);
    - "scales": is multiplied by a number, as W as a whole is;
    - "breaks": moves, mostly since each element or row is scaled by itself;
    - "second copy": depends on a second copy of the weights;
    - "untried": needs a closure, the model, second derivatives or arguments of its own.
    """
    with (Path(__file__).parent / "rules.csv").open(encoding="utf-8") as lines:
        return {row["rule"]: (row["theory"], row["reason"]) for row in csv.DictReader(lines)}


def nc0_law(lr, wd, momentum=0.0, coupled: bool = True) -> np.ndarray:
    """Exact NC0 of SGD (coupled) or SGDW (decoupled) with momentum, relative to its initial value.

    The rows of the cross-entropy gradient of W sum to zero (Lemma E.4), so that s = W^T 1 moves by weight decay alone,
    whatever the backbone and the data. With v the momentum buffer's row sum, v_0 = 0::

        coupled    v <- beta v + wd s,  s <- s - lr v        (the update of Theorem 3.1)
        decoupled  s <- (1 - lr wd) s

    The theorem bounds this from above; here it is iterated as it stands.

    Arguments: lr, the learning rate of each step [T] (see `runs.lr_per_step`) or [T, ...]; wd >= 0; momentum in
    [0, 1). Returns s_t / s_0 [T + 1, ...], starting with 1 and signed: its absolute value is NC0_t / NC0_0.
    """
    lr = np.asarray(lr, dtype=np.float64)
    if lr.ndim < 1 or lr.size == 0 or not (lr >= 0).all():
        raise ValueError("lr must hold the learning rate of each step: at least one, none negative")
    wd, momentum = _decay(wd), _momentum(momentum)
    shape = np.broadcast_shapes(lr.shape[1:], wd.shape, momentum.shape)
    lr = lr.reshape(len(lr), *(1,) * (len(shape) - lr.ndim + 1), *lr.shape[1:])
    law = np.ones((len(lr) + 1, *shape))
    if not coupled:
        law[1:] = 1 - lr * wd
        return law.cumprod(axis=0)
    if shape == ():  # plain numbers are ten times faster than arrays of none
        s, v, wd, momentum, lr = 1.0, 0.0, float(wd), float(momentum), lr.tolist()
    else:
        s, v = np.ones(shape), np.zeros(shape)
    for t, step in enumerate(lr):
        v = momentum * v + wd * s
        s = s - step * v
        law[t + 1] = s
    return law


def roots(lr, wd, momentum) -> tuple[np.ndarray, np.ndarray]:
    """Roots r1, r2 (complex, the larger modulus first) of r^2 - (1 + beta - lr wd) r + beta = 0.

    For a constant lr the coupled law is s_t / s_0 = A r1^t + (1 - A) r2^t with A = ((1 - lr wd) - r2) / (r1 - r2).
    They are real, and s decays without oscillating, up to lr wd = (1 - sqrt(beta))^2 (`critical_decay`); from there
    to (1 + sqrt(beta))^2 both have modulus sqrt(beta), whatever wd is; past that they are real again, and one is larger.
    """
    lr, wd, momentum = _rate(lr), _decay(wd), _momentum(momentum)
    half = (1 + momentum - lr * wd) / 2
    offset = np.sqrt((half**2 - momentum).astype(complex))
    r1, r2 = half + offset, half - offset
    swap = np.abs(r2) > np.abs(r1)
    return np.where(swap, r2, r1), np.where(swap, r1, r2)


def critical_decay(lr, momentum) -> np.ndarray:
    """The weight decay past which more decay no longer speeds NC0 up: wd = (1 - sqrt(beta))^2 / lr."""
    return (1 - np.sqrt(_momentum(momentum))) ** 2 / _rate(lr)


def alpha_rate(lr, wd, momentum) -> np.ndarray:
    """Asymptotic decay of alpha per step, -2 log of r1's modulus: about 2 lr wd / (1 - beta) for small lr wd."""
    return -2 * np.log(np.abs(roots(lr, wd, momentum)[0]))


def theorem31_bound(lr, wd, momentum, steps: int) -> np.ndarray:
    """Theorem 3.1's bound on alpha_t / alpha_0 [steps + 1, ...] without its constant C and its additive O(lr).

    exp(-lr wd t / log(1/beta)) for beta > 0, (1 - lr wd)^t for beta = 0. The theorem assumes 2 wd / log(1/beta) < 1.
    As printed it bounds alpha_t itself; its C is a constant for all starts only with alpha_0 before it, as in Eq. 19.

    For lr -> 0 at fixed lr t the exact alpha goes to alpha_0 exp(-2 lr wd t / (1 - beta)), under the bound for every wd. The
    O(lr) is not uniform, though: past lr wd = log(1/beta)^2 the exponential alone ends below alpha by any factor.
    """
    lr, wd, momentum = _rate(lr), _decay(wd), _momentum(momentum)
    t = _steps(steps, np.broadcast_shapes(lr.shape, wd.shape, momentum.shape))
    with np.errstate(divide="ignore"):  # log(0), where the other form counts
        with_momentum = np.exp(lr * wd / np.log(momentum) * t)
    return np.where(momentum > 0, with_momentum, (1 - np.minimum(lr * wd, 1)) ** t)


def lemma_e6(decay, momentum, t) -> np.ndarray:
    """Lemma E.6's solution of alpha' = -decay * integral of beta^(t - tau) alpha(tau) dtau, alpha(0) = 1, at times t."""
    decay, momentum = np.asarray(decay, dtype=np.float64), _momentum(momentum)
    if not ((momentum > 0).all() and (decay > 0).all()):
        raise ValueError("decay and momentum must be positive for Lemma E.6")
    log_beta = np.log(momentum)
    root = np.sqrt((log_beta**2 - 4 * decay).astype(complex))
    r1, r2 = (log_beta + root) / 2, (log_beta - root) / 2
    t = np.asarray(t, dtype=np.float64)
    t = t.reshape(*t.shape, *(1,) * r1.ndim)
    with np.errstate(invalid="ignore"):
        apart = (r2 * np.exp(r1 * t) - r1 * np.exp(r2 * t)) / (r2 - r1)
    return np.where(r1 == r2, np.exp(r1 * t) * (1 - r1 * t), apart).real


def signgd(K, wd, lr, steps: int, coupled: bool, dtype=None) -> np.ndarray:
    """Alpha [steps + 1, ...] of SignGD on the UFM of Theorems 3.3 and 3.4: H = M*, N = K, W_0 = 0.

    With dtype=None arithmetic is exact: alpha = (a - (K - 1) b)^2 of `signgd_path`. With np.float32 or np.float64 the
    K x K matrices themselves are iterated in that precision (K one number): once the softmax underflows, sign(0) = 0
    and W stops short of Theorem 3.3's limit.
    """
    K, wd, lr = _classes(K), _decay(wd), _rate(lr)
    if dtype is None:
        a, b = signgd_path(K, wd, lr, steps, coupled)
        b *= K - 1
        a -= b
        return np.square(a, out=a)
    if K.ndim or np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(
            f"K = {K}, dtype = {dtype} is not allowed: with dtype, K must be one number, dtype float32 or float64"
        )
    alpha = np.zeros((_count(steps) + 1, *np.broadcast_shapes(K.shape, wd.shape, lr.shape)))
    return _signgd_matrices(int(K), wd, lr, alpha, coupled, np.dtype(dtype))


def signgd_path(K, wd, lr, steps: int, coupled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal a and negative off-diagonal b [steps + 1, ...] of W under SignGD: W = (a + b) I - b J.

    W keeps this form, with logits that differ by z = (a + b) / sqrt(K - 1), off-diagonal gradient
    g = 1 / (sqrt(K - 1) (e^z + K - 1)) and diagonal gradient -(K - 1) g::

        coupled    a <- a + lr sign((K - 1) g - wd a),   b <- b + lr sign(g - wd b)
        decoupled  a <- (1 - lr wd) a + lr,              b <- (1 - lr wd) b + lr
    """
    K, wd, lr = _classes(K), _decay(wd), _rate(lr)
    path = np.zeros((2, _count(steps) + 1, *np.broadcast_shapes(K.shape, wd.shape, lr.shape)))
    root = np.sqrt(K - 1.0)
    for t in range(path.shape[1] - 1):
        a, b = path[:, t]
        if coupled:
            small = np.exp(-(a + b) / root)
            # positive, however small
            g = np.maximum(small / (1 + (K - 1) * small) / root, np.finfo(float).tiny)
            path[0, t + 1] = a + lr * np.sign((K - 1) * g - wd * a)
            path[1, t + 1] = b + lr * np.sign(g - wd * b)
        else:
            path[:, t + 1] = (1 - lr * wd) * path[:, t] + lr
    return path[0], path[1]


def _signgd_matrices(K, wd, lr, alpha, coupled, dtype):
    etf = ((np.eye(K) - 1 / K) / np.sqrt(K - 1)).astype(dtype)
    w = np.zeros((*alpha.shape[1:], K, K), dtype)
    wd, lr = (np.broadcast_to(x, alpha.shape[1:])[..., None, None].astype(dtype) for x in (wd, lr))
    for t in range(len(alpha) - 1):
        logits = w @ etf
        s = np.exp(logits - logits.max(-2, keepdims=True))
        gradient = (s / s.sum(-2, keepdims=True) - np.eye(K, dtype=dtype)) @ etf
        w = w - lr * np.sign(gradient + wd * w) if coupled else (1 - lr * wd) * w - lr * np.sign(gradient)
        alpha[t + 1] = (w.sum(-2, dtype=np.float64) ** 2).sum(-1) / K
    return alpha


def theorem33(K, wd, lr, steps: int) -> np.ndarray:
    """Theorem 3.3's closed form of alpha under decoupled decay, ((K - 2) / wd)^2 (1 - (1 - lr wd)^t)^2 [steps + 1, ...]."""
    K, wd, lr = _classes(K), _decay(wd), _rate(lr)
    t = _steps(steps, np.broadcast_shapes(K.shape, wd.shape, lr.shape))
    return signgdw_limit(K, wd) * (1 - (1 - lr * wd) ** t) ** 2


def signgdw_limit(K, wd) -> np.ndarray:
    """Theorem 3.3's limit of alpha, (K - 2)^2 / wd^2.

    With any features and p columns of W the same argument gives a ceiling of NC0 under SignumW, sqrt(p) (K - 2) / wd: each
    column of the averaged gradient sums to zero (Lemma E.4), so its signs never all agree and sum to K - 2 at most.
    """
    K, wd = _classes(K), _decay(wd)
    _allowed("wd", lambda wd: wd > 0, "it must be greater than 0, or alpha grows without limit", wd)
    return (K - 2.0) ** 2 / wd**2


def t1(K, wd, lr, as_printed: bool = False) -> np.ndarray:
    """The step at which alpha of SignGD with coupled decay turns from rising to falling (Theorem 3.4).

    It solves g(T) = wd lr T with a = b = lr T: (1/sqrt(K-1)) / (exp(2 lr T / sqrt(K-1)) + K - 1) = wd lr T. The paper
    prints 1 / (exp(2 lr T) + K - 1) = wd lr T (`as_printed`): both factors 1/sqrt(K-1) of H = M* are missing.
    """
    K, wd, lr = _classes(K), _decay(wd), _rate(lr)
    _allowed("wd", lambda wd: wd > 0, "it must be greater than 0, or alpha never turns", wd)
    root = 1.0 if as_printed else np.sqrt(K - 1.0)
    # with u = lr T the left side falls from 1 / (root K) and the right side rises from 0
    high = 1 / (root * K * wd) + np.zeros(lr.shape)
    return _crossing(lambda u: 1 / (root * (np.exp(2 * u / root) + K - 1)) - wd * u, high) / lr


def regularised_minimum(K, wd) -> np.ndarray:
    """b* of the minimiser W = b* (K I - J) of the loss plus wd/2 ||W||^2 with H = M*: an NC solution, alpha = 0.

    Both of SignGD's sign conditions vanish there: g = wd b and (K - 1) g = wd a, so a = (K - 1) b, that is
    1 / (sqrt(K - 1) (exp(K b / sqrt(K - 1)) + K - 1)) = wd b.
    """
    K, wd = _classes(K), _decay(wd)
    _allowed("wd", lambda wd: wd > 0, "it must be greater than 0, or W grows without limit", wd)
    root = np.sqrt(K - 1.0)
    return _crossing(lambda b: 1 / (root * (np.exp(K * b / root) + K - 1)) - wd * b, 1 / (root * K * wd))


def t2(K, wd, lr) -> np.ndarray:
    """The step at which SignGD with coupled decay stops approaching the minimiser and starts to oscillate around it.

    The diagonal a rises by lr in each step until it meets (K - 1) b* (`regularised_minimum`): T2 = (K - 1) b* / lr.
    The proof of Theorem 3.4 lets the off-diagonal b stay within lr of lr T1, where it slides down to b* instead.
    """
    return (_classes(K) - 1) * regularised_minimum(K, wd) / _rate(lr)


def ufm_minimum(K, n, wd) -> tuple[np.ndarray, np.ndarray]:
    """Margin c and objective at the minimum of the unconstrained feature model with n samples a class.

    The objective is the mean cross-entropy plus wd/2 (||W||^2 + ||H||^2). The second term is at least wd times the
    nuclear norm of the logits; at a collapsed solution, whose right logit exceeds the others by c, that is
    c (K - 1) sqrt(n). Minimising log(1 + (K - 1) e^-c) + wd c (K - 1) sqrt(n) over c >= 0 gives
    e^c = 1 / (wd sqrt(n)) - (K - 1) for wd < 1 / (K sqrt(n)), and c = 0 beyond: nothing but W = H = 0 is left.
    """
    K, wd, n = _classes(K), _decay(wd), np.asarray(n, dtype=np.float64)
    if not ((n >= 1).all() and (wd > 0).all()):
        raise ValueError(f"n = {n}, wd = {wd} is not allowed: n must be 1 or more, wd greater than 0")
    margin = np.log(np.maximum(1 / (wd * np.sqrt(n)) - (K - 1), 1))
    return margin, np.log1p((K - 1) * np.exp(-margin)) + wd * margin * (K - 1) * np.sqrt(n)


def lemma_e5(W, V, gradient, lr, wd, momentum) -> tuple[float, float]:
    """Both sides of Lemma E.5 for one step of SGD with momentum from weights W [K, p] and momentum buffer V [K, p].

    (alpha_{t+1} - alpha_t) / lr = -2 beta omega - 2 gamma - 2 wd alpha + lr nu_{t+1}, with <A B^T, J/K> for (V, W),
    (gradient, W), (W, W) and (V_{t+1}, V_{t+1}). Whatever the gradient. (Eq. 15, the recursion of omega that Theorem 3.1's
    proof goes on with, has a sign error: omega_{t+1} = beta (1 - 2 lr wd) omega + wd (1 - lr wd) alpha - beta^2 lr nu.)
    """
    W, V, gradient = (np.asarray(x, dtype=np.float64) for x in (W, V, gradient))
    lr, wd, momentum = _rate(lr), _decay(wd), _momentum(momentum)

    def product(a, b):
        return a.sum(0) @ b.sum(0) / len(W)

    V_next = momentum * V + gradient + wd * W
    W_next = W - lr * V_next
    left = (product(W_next, W_next) - product(W, W)) / lr
    right = -2 * momentum * product(V, W) - 2 * product(gradient, W) - 2 * wd * product(W, W)
    return float(left), float(right + lr * product(V_next, V_next))


def simplex_etf(K: int) -> np.ndarray:
    """K unit vectors in R^(K-1) with pairwise cosine -1/(K-1), the rows of the result [K, K-1]; they sum to zero."""
    _classes(K)
    # rows of I - J/K lie in the (K-1)-dimensional complement of 1; the QR basis gives their coordinates there
    basis = np.linalg.qr(np.column_stack([np.ones(K), np.eye(K)[:, 1:]]))[0][:, 1:]
    return basis * np.sqrt(K / (K - 1))


def _crossing(falling, high) -> np.ndarray:
    """Where a falling function crosses zero between 0 and `high`, by bisection."""
    low = np.zeros_like(high)
    with np.errstate(over="ignore"):
        for _ in range(100):
            middle = (low + high) / 2
            above = falling(middle) > 0
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def _allowed(name: str, holds, why: str, value) -> np.ndarray:
    value = np.asarray(value, dtype=np.float64)
    if not holds(value).all():
        raise ValueError(f"{name} = {value} is not allowed: {why}")
    return value


_rate = functools.partial(_allowed, "lr", lambda lr: lr > 0, "it must be greater than 0")
_decay = functools.partial(_allowed, "wd", lambda wd: wd >= 0, "weight decay must be 0 or more")
_momentum = functools.partial(_allowed, "momentum", lambda m: (m >= 0) & (m < 1), "it must lie in [0, 1)")


def _classes(K) -> np.ndarray:
    K = np.asarray(K)
    if not (np.issubdtype(K.dtype, np.integer) and (K >= 2).all()):
        raise ValueError(f"K = {K} is not allowed: it must be an integer of 2 or more")
    return K


def _count(steps) -> int:
    if not 1 <= steps < float("inf") or steps != int(steps):
        raise ValueError(f"steps = {steps!r} is not allowed: it must be a whole number, 1 or more")
    return int(steps)


def _steps(steps, shape) -> np.ndarray:
    return np.arange(_count(steps) + 1.0).reshape(-1, *(1,) * len(shape))
