import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils import theory
from ncutils.book import published
from ncutils.metrics import nc_metrics
from ncutils.optimizers import make_optimizer
from ncutils.runs import lr_schedule
from ncutils.training import Run, lr_per_step


def test_the_papers_sgdw_follows_from_its_hyper_parameters():
    """Table 1: -68.9 %, from 93,800 steps of p *= 1 - lr wd, multiplied out one by one here."""
    setting = published.TABLE1_SETTING
    run = Run(lr=setting["lr_sgd"], epochs=setting["epochs"], batch_size=setting["batch_size"])
    lr = lr_per_step(run, setting["n_train"])
    assert len(lr) == 200 * 469
    law = theory.nc0_law(lr, setting["wd"], coupled=False)[-1]
    by_hand = 1.0
    for epoch in range(200):
        rate = 0.0679 * (1 if epoch < 66 else 0.1 if epoch < 133 else 0.01)
        by_hand *= (1 - rate * 5e-4) ** 469
    assert law == pytest.approx(by_hand, rel=1e-10)
    assert round(100 * (law - 1), 1) == published.TABLE1_CHANGE["SGDW"]["nc0"] == -68.9


def test_what_the_papers_decoupled_decay_does_to_nc0_in_figure_7():
    """Chapter 05: the whole of wd 5e-4 decoupled, at the learning rates of the paper's grid for Adam, multiplied out here."""
    shares = []
    for rate in published.GRID_LR["AdamW"]:
        lr = lr_per_step(Run(lr=rate, epochs=200), 60_000)
        by_hand = (
            np.prod([(1 - rate * drop * 5e-4) ** n for drop, n in zip((1, 0.1, 0.01), (66, 67, 67))]) ** 469
        )
        assert theory.nc0_law(lr, 5e-4, coupled=False)[-1] == pytest.approx(by_hand, rel=1e-9)
        shares.append(round(100 * (1 - by_hand), 1))
    assert shares == [1.7, 8.2, 15.8]


def test_the_papers_sgd_is_below_float32():
    setting = published.TABLE1_SETTING
    lr = lr_per_step(Run(lr=setting["lr_sgd"], epochs=200), setting["n_train"])
    assert theory.nc0_law(lr, setting["wd"], setting["momentum"])[-1] == pytest.approx(8.2e-6, rel=0.02)


@pytest.mark.parametrize("drops", [(67, 134), (66, 133)])
def test_only_one_schedule_gives_the_published_digit(drops):
    rate = 0.0679 * 0.1 ** sum(np.arange(200) >= d for d in drops)
    change = theory.nc0_law(np.repeat(rate, 469), 5e-4, coupled=False)[-1] - 1
    assert (round(100 * change, 1) == -68.9) == (drops == (66, 133))


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-4, 0.2), st.floats(0, 0.5), st.floats(0, 0.97), st.integers(1, 400))
def test_constant_rate_has_the_two_roots(lr, wd, beta, steps):
    """s_t/s_0 = A r1^t + B r2^t with r^2 - (1 + beta - lr wd) r + beta = 0, over- and under-damped."""
    trace = 1 + beta - lr * wd
    root = np.sqrt(complex(trace**2 - 4 * beta))
    r1, r2 = (trace + root) / 2, (trace - root) / 2
    if abs(r1 - r2) < 1e-4:
        return
    a = ((1 - lr * wd) - r2) / (r1 - r2)
    t = np.arange(steps + 1)
    expected = (a * r1**t + (1 - a) * r2**t).real
    assert np.allclose(theory.nc0_law(np.full(steps, lr), wd, beta), expected, rtol=0, atol=1e-9)


def test_without_momentum_both_decays_agree_and_without_decay_nothing_moves():
    lr = np.linspace(0.1, 0.01, 50)
    assert np.allclose(theory.nc0_law(lr, 0.3), theory.nc0_law(lr, 0.3, coupled=False))
    assert (theory.nc0_law(lr, 0, 0.9) == 1).all()
    assert theory.nc0_law([0, 1], 0.5).tolist() == [1, 1, 0.5]  # nor where the rate is 0


def test_schedule():
    lr = lr_schedule(Run(lr=1.0, epochs=200))
    assert (lr[:66] == 1).all() and np.allclose(lr[66:133], 0.1) and np.allclose(lr[133:], 0.01)
    assert (lr_schedule(Run(lr=0.3, epochs=9, schedule="constant")) == 0.3).all()
    assert len(lr_per_step(Run(epochs=3, batch_size=128), 1437)) == 3 * 12


@pytest.mark.parametrize("K", [2, 3, 5, 10])
def test_simplex(K):
    etf = theory.simplex_etf(K)
    cosines = np.full((K, K), -1 / (K - 1)) + np.eye(K) * K / (K - 1)
    assert etf.shape == (K, K - 1) and np.allclose(etf @ etf.T, cosines) and np.allclose(etf.sum(0), 0)


def test_a_grid_is_one_call():
    lr = np.linspace(0.1, 0.01, 300)
    wd, beta = np.array([0.0, 0.01, 0.3])[:, None], np.array([0.0, 0.5, 0.9, 0.98])
    for coupled in (True, False):
        grid = theory.nc0_law(lr, wd, beta, coupled)
        assert grid.shape == (301, 3, 4)
        for i in range(3):
            for j in range(4):
                one = theory.nc0_law(lr, wd[i, 0], beta[j], coupled)
                assert np.allclose(grid[:, i, j], one, rtol=1e-12, atol=0)
    rates = np.stack([lr, 2 * lr], axis=1)  # a schedule each
    assert np.allclose(theory.nc0_law(rates, 0.1)[:, 1], theory.nc0_law(2 * lr, 0.1))


GRID = {
    "K": np.array([3, 6])[:, None, None],
    "wd": np.array([0.05, 0.3])[:, None],
    "lr": np.array([0.02, 0.1, 0.3]),
}


@pytest.mark.parametrize(
    ("function", "names", "others"),
    [
        (theory.theorem33, ("K", "wd", "lr"), (40,)),
        (theory.signgd, ("K", "wd", "lr"), (40, True)),
        (theory.signgd, ("K", "wd", "lr"), (40, False)),
        (lambda *a: theory.signgd_path(*a, 40, True)[0], ("K", "wd", "lr"), ()),
        (lambda *a: theory.signgd_path(*a, 40, False)[1], ("K", "wd", "lr"), ()),
        (lambda wd, lr: theory.signgd(6, wd, lr, 40, True, np.float64), ("wd", "lr"), ()),
        (lambda wd, lr: theory.signgd(6, wd, lr, 40, False, np.float64), ("wd", "lr"), ()),
        (lambda lr, wd: theory.theorem31_bound(lr, wd, 0.9, 40), ("lr", "wd"), ()),
        (lambda lr, wd: theory.theorem31_bound(lr, 0.1, wd, 40), ("lr", "wd"), ()),  # a momentum each
        (lambda *a: theory.t1(*a)[None], ("K", "wd", "lr"), ()),
        (lambda *a: theory.t2(*a)[None], ("K", "wd", "lr"), ()),
        (lambda lr, wd: theory.roots(lr, wd, 0.8)[0][None], ("lr", "wd"), ()),
    ],
)
def test_a_grid_is_one_call_of_every_theorem(function, names, others):
    """As one after the other: each value in turn, whichever of the arguments are arrays, and of however many dimensions."""
    axes = [GRID[name] for name in names]
    shape = np.broadcast_shapes(*(axis.shape for axis in axes))
    grid = function(*axes, *others)
    assert grid.shape == (len(grid), *shape)
    for at in np.ndindex(*shape):
        one = function(*(np.broadcast_to(axis, shape)[at] for axis in axes), *others)
        assert np.allclose(grid[(slice(None), *at)], one, rtol=1e-9, atol=0)
    for i, axis in enumerate(axes):  # one argument is an array, the others numbers
        numbers = [axis.flat[0] if j == i else other.flat[0] for j, other in enumerate(axes)]
        mixed = function(
            *(axes[i].ravel() if j == i else number for j, number in enumerate(numbers)), *others
        )
        assert mixed.shape == (len(grid), axis.size)
        assert np.allclose(mixed[:, 0], function(*numbers, *others), rtol=1e-9, atol=0)


def test_the_roots_are_those_of_their_equation():
    lr, wd, beta = 0.1, np.array([0.0, 0.02, 0.5, 3.0, 38.0, 60.0]), 0.9
    r1, r2 = theory.roots(lr, wd, beta)
    assert np.allclose(r1 * r2, beta) and np.allclose(r1 + r2, 1 + beta - lr * wd, rtol=1e-12, atol=1e-12)
    assert (np.abs(r1) >= np.abs(r2) * (1 - 1e-12)).all() and np.abs(r1)[-1] > 1  # so much decay grows


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 0.2), st.floats(1e-3, 0.5), st.floats(0.0, 0.97))
def test_alpha_rate_and_the_critical_decay(lr, wd, beta):
    r1, _ = theory.roots(lr, wd, beta)
    if wd < 0.999 * theory.critical_decay(lr, beta):
        assert abs(r1.imag) < 1e-12
    elif 1.001 * theory.critical_decay(lr, beta) < wd < (1 + beta) / lr:
        assert np.abs(r1) == pytest.approx(np.sqrt(beta), abs=1e-9)  # the same, whatever wd is
        if beta > 0.01:
            assert theory.alpha_rate(lr, wd, beta) == pytest.approx(-np.log(beta), rel=1e-6)


def test_the_bound_is_a_factor_of_two_slow_where_it_holds():
    """Notes: alpha decays at 2 lr wd / (1 - beta), the theorem claims lr wd / log(1/beta)."""
    lr, wd = 1e-3, 1e-3
    for beta in (0.5, 0.9, 0.98):
        rate = theory.alpha_rate(lr, wd, beta)
        assert rate == pytest.approx(2 * lr * wd / (1 - beta), rel=1e-2)
        assert rate > 1.99 * lr * wd / np.log(1 / beta)
        t = 20_000
        alpha = theory.nc0_law(np.full(t, lr), wd, beta) ** 2
        assert (alpha[100:] <= theory.theorem31_bound(lr, wd, beta, t)[100:]).all()


def test_without_momentum_the_bound_is_the_law_of_nc0():
    """Where the theorem's exponent is infinite: a step multiplies NC0, and so the bound, by 1 - lr wd."""
    with warnings.catch_warnings(action="error"):
        bound = theory.theorem31_bound(0.1, 0.5, 0, 3)
        past_1 = theory.theorem31_bound(0.1, 20, [0, 0.5], 3)[:, 0]
    assert past_1.tolist() == [1, 0, 0, 0]  # lr wd is 2: nothing is left after a step
    assert bound == pytest.approx(0.95 ** np.arange(4), rel=1e-12)


def test_under_damped_the_exponential_is_37_orders_of_magnitude_off():
    lr, wd, beta, t = 0.1, 0.01, 0.98, 3000
    assert 2 * wd / np.log(1 / beta) < 1  # inside the theorem's hypotheses
    assert wd > theory.critical_decay(lr, beta)
    s = theory.nc0_law(np.full(t, lr), wd, beta)
    scaled = s**2 / beta ** np.arange(t + 1.0)  # oscillates, does not decay: alpha goes like beta^t
    assert scaled[-500:].max() == pytest.approx(scaled[1000:1500].max(), rel=0.05)
    orders = np.log10(s[-1] ** 2 / theory.theorem31_bound(lr, wd, beta, t)[-1])
    assert int(orders) == 37


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("wd", [0.001, 0.05, 2.0])  # the last is outside the theorem's hypothesis
def test_for_small_learning_rates_theorem_3_1_holds_at_every_decay(beta, wd):
    """At fixed lr t alpha goes to alpha_0 exp(-2 wd lr t / (1 - beta)), faster than the bound by 2 log(1/beta)/(1 - beta)."""
    horizon, off = 0.2, []
    for steps in (20_000, 80_000):
        alpha = theory.nc0_law(np.full(steps, horizon / steps), wd, beta)[-1] ** 2
        off.append(abs(np.log(alpha) + 2 * wd * horizon / (1 - beta)))
        assert alpha < theory.theorem31_bound(horizon / steps, wd, beta, steps)[-1]
    assert off[1] < 0.3 * off[0] < 0.03 * 2 * wd * horizon / (1 - beta)  # first order in lr


def trace_of_sgd(start, lr, wd, beta, steps=30):
    """Alpha, omega and nu [3, steps + 1] of SGD with momentum from the matrices themselves, W_0 = `start` [K, p], V_0 = 0.

    The gradients are random, their rows sum to zero as those of the cross-entropy loss do (Lemma E.4).
    """
    rng, (k, p) = np.random.default_rng(0), start.shape
    w, v, j_over_k, found = start, np.zeros((k, p)), np.full((k, k), 1 / k), []
    for _ in range(steps + 1):
        found.append([np.sum(a @ b.T * j_over_k) for a, b in ((w, w), (v, w), (v, v))])
        gradient = rng.normal(size=(k, p))
        v = beta * v + gradient - gradient.mean(0) + wd * w
        w = w - lr * v
    return np.transpose(found)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.5), st.floats(0.01, 1.0), st.floats(0, 0.97), st.integers(0, 100))
def test_eq_15_with_its_sign_corrected(lr, wd, beta, draw):
    """As printed it is off by 2 lr wd (beta omega + wd alpha): the step of W is minus lr V, in both of its terms."""
    alpha, omega, nu = trace_of_sgd(np.random.default_rng(draw).normal(size=(7, 5)), lr, wd, beta)
    scale = np.abs(omega).max()
    corrected = beta * (1 - 2 * lr * wd) * omega + wd * (1 - lr * wd) * alpha - beta**2 * lr * nu
    printed = beta * omega + wd * (1 + lr * wd) * alpha - beta**2 * lr * nu
    assert np.abs(omega[1:] - corrected[:-1]).max() < 1e-11 * scale
    off = printed[:-1] - omega[1:]
    assert np.allclose(off, 2 * lr * wd * (beta * omega + wd * alpha)[:-1], rtol=1e-6, atol=1e-11 * scale)
    assert off[0] > 0.9 * 2 * lr * wd**2 * alpha[0] > 0


def test_theorem_3_1_needs_alpha_0():
    """Weights k times as large have an alpha k^2 times as large at every step: no constant C bounds alpha for all starts."""
    start = np.random.default_rng(1).normal(size=(7, 5))
    small, large = (trace_of_sgd(k * start, 0.1, 0.05, 0.9)[0] for k in (1, 1000))
    assert np.allclose(large, 1e6 * small, rtol=1e-6)
    assert np.allclose(small / small[0], theory.nc0_law(np.full(30, 0.1), 0.05, 0.9) ** 2)


@pytest.mark.parametrize("decay", [0.002, np.log(0.9) ** 2 / 4, 0.05])  # over-, critically and under-damped
def test_lemma_e6_solves_its_equation(decay):
    beta = 0.9
    t = np.linspace(0, 50, 20_001)
    alpha, h = theory.lemma_e6(decay, beta, t), t[1]
    kernel = beta ** (t[-1] - t)
    integral = h * (kernel * alpha).sum() - h / 2 * (kernel[0] * alpha[0] + alpha[-1])
    derivative = (alpha[-1] - alpha[-2]) / h
    assert alpha[0] == pytest.approx(1) and derivative == pytest.approx(-decay * integral, rel=1e-3)


@pytest.mark.parametrize("beta", [0.9, 0.98])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_past_a_decay_the_exact_limit_breaks_the_inequality_that_lemma_e6_is_applied_to(beta, share):
    """The law's own alpha at small lr against alpha' <= -wd * integral of beta^(t - tau) alpha, in slow time t = lr steps."""
    wd = share * (1 - beta) / 2 * (np.log(1 / beta) - (1 - beta) / 2)
    lr, t = 1e-3, np.linspace(0, 60 / (1 - beta), 6001)
    alpha = np.exp(-theory.alpha_rate(lr, wd, beta) / lr * t)
    kernel, h = beta**t, t[1]
    integral = h * (np.convolve(kernel, alpha)[: len(t)] - (kernel * alpha[0] + kernel[0] * alpha) / 2)
    kept = np.gradient(alpha, h)[1:-1] <= -wd * integral[1:-1]
    assert kept[: len(kept) // 60].all() and kept.all() == (share < 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 30), st.floats(0.02, 0.5), st.floats(1e-3, 2e-2))
def test_t1_is_where_alpha_turns(K, wd, lr):
    predicted = theory.t1(K, wd, lr)
    if not 3 < predicted < 3000:
        return
    alpha = theory.signgd(K, wd, lr, int(predicted) + 20, coupled=True)
    turned = int(np.argmax(np.diff(alpha) < 0))
    assert turned - 1 <= predicted <= turned + 1e-6


def test_t1_of_the_notes_and_of_the_paper():
    for setting, measured, corrected, printed in (
        ((10, 0.05, 0.01), 64, 63.3, 110),
        ((10, 0.5, 0.001), 67, 66.4, 191),
        ((20, 0.05, 0.01), 23, 22.8, 83),
        ((4, 0.1, 0.01), 96, 95.8, 98),
    ):
        alpha = theory.signgd(*setting, 300, coupled=True)
        assert np.argmax(np.diff(alpha) < 0) == measured
        assert theory.t1(*setting) == pytest.approx(corrected, abs=0.05)
        assert theory.t1(*setting, as_printed=True) == pytest.approx(printed, abs=0.6)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 12), st.floats(0.02, 0.5), st.floats(0.01, 0.1), st.booleans())
def test_two_numbers_are_the_matrix(K, wd, lr, coupled):
    """The reduction to a and b against the K x K matrices in float64, while float64 resolves the gradient."""
    steps = 150
    reduced = theory.signgd(K, wd, lr, steps, coupled)
    matrices = theory.signgd(K, wd, lr, steps, coupled, dtype=np.float64)
    assert reduced.shape == matrices.shape == (steps + 1,)
    if coupled:  # a sign that rounding decides shifts the oscillation by a step: compare up to the turn
        steps = min(steps, int(theory.t1(K, wd, lr)))
    assert np.allclose(reduced[: steps + 1], matrices[: steps + 1], rtol=1e-9, atol=1e-12)


def test_the_matrix_turns_and_settles_as_two_numbers_do():
    K, wd, lr = 10, 0.05, 0.01
    for dtype in (np.float64, np.float32):
        alpha = theory.signgd(K, wd, lr, 3000, True, dtype)
        assert np.argmax(np.diff(alpha) < 0) == 64  # the notes' turn
        assert alpha[-500:].max() < 4 * K**2 * lr**2 < alpha.max()


def test_signgd_starts_towards_the_right_classes():
    """The diagonal grows, the off-diagonal falls (b is its negative): closed form, and the first steps of the coupled form."""
    lr, wd = 0.1, 0.5
    for w in theory.signgd_path(4, wd, lr, 20, False):
        assert np.allclose(w, (1 - (1 - lr * wd) ** np.arange(21)) / wd)
    a, b = theory.signgd_path(10, 0.05, 0.01, 30, True)
    assert np.allclose(a, 0.01 * np.arange(31)) and np.allclose(b, a)
    a, b = theory.signgd_path(10, 0.05, 0.01, 3000, True)
    b_star = theory.regularised_minimum(10, 0.05)
    assert a[-1] == pytest.approx(9 * b_star, rel=0.02) and b[-1] == pytest.approx(b_star, rel=0.1)
    assert theory.t2(10, 0.05, 0.01) == pytest.approx(9 * b_star / 0.01)
    assert theory.signgd(10, 0.05, 0.01, 1, True)[1] == pytest.approx((0.01 * 8) ** 2)  # one step is allowed


def test_decoupled_signgd_ends_at_the_limit_unless_float32_underflows():
    assert theory.signgdw_limit(10, 0.05) == pytest.approx(25_600)
    closed = theory.theorem33(10, 0.05, 0.1, 4000)
    assert np.allclose(theory.signgd(10, 0.05, 0.1, 4000, False), closed, rtol=1e-9)
    assert closed[-1] == pytest.approx(25_600, rel=1e-3)
    shares = [
        theory.signgd(10, wd, 0.1, 20_000, False, dtype=np.float32)[-1] / theory.signgdw_limit(10, wd)
        for wd in (0.05, 0.005)
    ]
    assert shares[0] == pytest.approx(0.9998, abs=3e-4) and shares[1] == pytest.approx(0.17, abs=0.01)


def train_signumw(w, features, labels, lr, wd, momentum, steps):
    """NC0 after each step [steps + 1] of SignumW on the cross-entropy loss, and the largest row sum of its signs."""
    w, sums = w.clone().requires_grad_(), []
    optimizer, found = make_optimizer([w], "signum", lr=lr, momentum=momentum, decoupled_wd=wd), []
    for _ in range(steps):
        found.append(float(w.detach().sum(0).norm()))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(features @ w.T, labels).backward()
        optimizer.step()
        average = optimizer.state[w]["average"] if momentum else w.grad
        sums.append(float(average.sign().sum(0).abs().max()))
    return np.array([*found, float(w.detach().sum(0).norm())]), max(sums)


@pytest.mark.parametrize("K", [2, 3, 10])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nc0_of_signumw_stays_under_its_ceiling(K, momentum):
    """sqrt(p) (K - 2)/wd (1 - (1 - lr wd)^t) on top of what is left of the start: K - 2, since no column's signs all agree."""
    p, lr, wd, steps = 12, 0.02, 0.5, 400
    generator = torch.Generator().manual_seed(K)
    features = torch.randn(20 * K, p, generator=generator, dtype=torch.float64)
    start = torch.randn(K, p, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (20 * K,), generator=generator)
    nc0, most = train_signumw(start, features, labels, lr, wd, momentum, steps)
    left = (1 - lr * wd) ** np.arange(steps + 1)
    assert (nc0 <= np.sqrt(p) * (K - 2) / wd * (1 - left) + left * nc0[0] + 1e-9).all()
    assert most <= K - 2
    if K == 2:  # as many plus as minus: nothing but the decay is left
        assert np.allclose(nc0, left * nc0[0], atol=1e-9)


def test_the_ceiling_is_reached_in_theorem_3_3s_setting():
    K, wd = 6, 0.2
    etf = (torch.eye(K, dtype=torch.float64) - 1 / K) / np.sqrt(K - 1)
    nc0, most = train_signumw(torch.zeros_like(etf), etf, torch.arange(K), 0.1, wd, 0.0, 2000)
    assert most == K - 2 and nc0[-1] == pytest.approx(np.sqrt(K) * (K - 2) / wd, rel=1e-6)


def test_coupled_signgd_rises_falls_and_oscillates():
    K, wd, lr = 10, 0.05, 0.01
    alpha = theory.signgd(K, wd, lr, 20_000, coupled=True)
    peak = int(theory.t1(K, wd, lr)) + 1
    assert (np.diff(alpha[:peak]) > 0).all()
    assert alpha[-1000:].max() < 4 * K**2 * lr**2 < alpha.max()


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 30), st.floats(0.02, 0.5), st.floats(1e-3, 2e-2))
def test_t2_is_where_coupled_signgd_reaches_the_minimiser(K, wd, lr):
    """The diagonal rises until T2; then a and b stay within a step or two of b* (K - 1) and b*, and alpha under (2 K lr)^2."""
    predicted, b_star = theory.t2(K, wd, lr), theory.regularised_minimum(K, wd)
    if predicted > 5000 or predicted < 10:
        return
    a, b = theory.signgd_path(K, wd, lr, int(predicted) + 2000, coupled=True)
    assert abs(int(np.argmax(np.diff(a) < 0)) - predicted) <= 2 + 0.01 * predicted
    assert np.abs(a[-500:] - (K - 1) * b_star).max() <= 4 * lr + 0.01 * a[-1]
    assert np.abs(b[-500:] - b_star).max() <= 2 * lr
    assert theory.signgd(K, wd, lr, int(predicted) + 2000, coupled=True)[-500:].max() <= (2 * K * lr) ** 2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.floats(0.01, 1.0))
def test_the_regularised_minimum_is_one(K, wd):
    """The gradient of cross-entropy plus wd/2 ||W||^2 vanishes at W = b* (K I - J), by its own formula."""
    etf = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    w = theory.regularised_minimum(K, wd) * (K * np.eye(K) - 1)
    s = np.exp(w @ etf - (w @ etf).max(0))
    gradient = (s / s.sum(0) - np.eye(K)) @ etf + wd * w
    assert np.abs(gradient).max() < 1e-9 and np.allclose(w.sum(0), 0)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 5), st.integers(1, 20), st.floats(0.05, 0.95), st.integers(0, 100))
def test_ufm_minimum_is_what_a_solver_finds(K, n, share, start):
    """Theorem C.1 at wd = share of the critical 1 / (K sqrt(n)): value and collapse from any start."""
    wd = share / (K * np.sqrt(n))
    labels = torch.arange(K * n) % K
    generator = torch.Generator().manual_seed(start)
    w, h = (
        torch.randn(rows, 6, generator=generator, dtype=torch.float64).requires_grad_() for rows in (K, K * n)
    )
    solver = torch.optim.LBFGS(
        [w, h], max_iter=5000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective():
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(h @ w.T, labels) + wd / 2 * (
            w.square().sum() + h.square().sum()
        )
        value.backward()
        return value

    solver.step(objective)
    margin, value = theory.ufm_minimum(K, n, wd)
    assert float(objective().detach()) == pytest.approx(float(value), rel=1e-8)
    logits = (h @ w.T).detach()
    others = logits + torch.diag(torch.full((K,), -torch.inf))[labels].nan_to_num(nan=0.0, neginf=-torch.inf)
    assert np.allclose(logits[range(K * n), labels] - others.max(1).values, margin, rtol=1e-3)
    metrics = nc_metrics(h.detach(), labels, w.detach())
    assert max(metrics[key] for key in ("nc0", "nc1", "nc2", "nc3")) < 1e-3


def test_beyond_the_critical_decay_only_zero_is_left():
    margin, value = theory.ufm_minimum(10, 1000, np.array([0.0031, 0.0032]))
    assert margin[0] > 0 and margin[1] == 0 and value[1] == pytest.approx(np.log(10))


def test_lemma_e5_holds_for_any_gradient():
    rng = np.random.default_rng(0)
    for _ in range(20):
        w, v, g = rng.normal(size=(3, 7, 5))
        lr, wd, beta = rng.uniform(0.01, 0.9, 3)
        left, right = theory.lemma_e5(w, v, g, lr, wd, beta)
        after = w - lr * (beta * v + g + wd * w)
        alphas = [np.linalg.norm(x.T @ np.ones(7)) ** 2 / 7 for x in (w, after)]
        assert left == pytest.approx(right, rel=1e-10) == (alphas[1] - alphas[0]) / lr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], 0.1), "^lr must hold"),
        (([-0.1], 0.1), "^lr must hold"),
        (([0.1], -1), "wd = -1.0 is not allowed"),
        (([0.1], float("nan")), "wd = nan is not allowed"),
        (([0.1], 0.1, 1.0), "momentum = 1.0 is not allowed"),
    ],
)
def test_bad_input(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        theory.nc0_law(*arguments)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: theory.signgd(1, 0.1, 0.1, 5, True), "K = 1 is not allowed"),
        (lambda: theory.signgd(10.5, 0.1, 0.1, 5, True), "K = 10.5 is not allowed"),
        (lambda: theory.signgd(10, -0.1, 0.1, 5, True), "wd = -0.1 is not allowed"),
        (lambda: theory.signgd(10, 0.1, 0, 5, True), "lr = 0.0 is not allowed"),
        (lambda: theory.signgd(10, 0.1, 0.1, 0, True), "steps = 0 is not allowed"),
        (lambda: theory.t1(10, 0, 0.1), "wd = 0.0 is not allowed"),
        (lambda: theory.ufm_minimum(10, 5, 0), "wd = 0.0 is not allowed"),
        (lambda: theory.t2(10, 0, 0.1), "wd = 0.0 is not allowed"),
        (lambda: theory.signgdw_limit(10, 0), "wd = 0.0 is not allowed"),
        (lambda: theory.roots(0.1, 0.1, 1.0), "momentum = 1.0 is not allowed"),
        (lambda: theory.lemma_e6(0.1, 0.0, 1.0), "^decay and momentum must be positive for Lemma E.6$"),
        (lambda: theory.lemma_e6(0.0, 0.5, 1.0), "decay and momentum must be positive"),
    ],
)
def test_bad_input_of_the_theorems(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_simplex_of_one():
    with pytest.raises(ValueError, match="K = 1 is not allowed"):
        theory.simplex_etf(1)


def test_without_decay_exact_signgd_goes_on_for_ever():
    """Both rules are the same then, and the sign of a gradient is not lost where float64 has it as 0."""
    both = [theory.signgd(10, 0.0, 1.0, 2000, coupled) for coupled in (True, False)]
    np.testing.assert_allclose(*both, rtol=1e-12)
    assert both[0][-1] == pytest.approx((2000 * (2 - 10)) ** 2)


def test_lemma_e6_has_time_first_and_a_whole_grid():
    decays, t = np.array([0.01, 0.1, 0.2]), np.linspace(0, 5, 3)
    found = theory.lemma_e6(decays, 0.9, t)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found, np.stack([theory.lemma_e6(d, 0.9, t) for d in decays], axis=1))


def test_a_number_of_steps_may_be_a_whole_float():
    a, b = theory.signgd_path(10, 0.1, 0.1, 5.0, False)
    assert a.shape == b.shape == (6,) and theory.signgd(10, 0.1, 0.1, 5.0, False).shape == (6,)


def test_past_the_second_bound_the_roots_are_real_again():
    for beta in (0.0, 0.5, 0.9):
        low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
        for decay in np.linspace(low, high, 5)[1:4]:
            np.testing.assert_allclose(np.abs(theory.roots(1, decay, beta)), beta**0.5, atol=1e-12)
        first, second = theory.roots(1, high + 0.1, beta)
        assert first.imag == second.imag == 0 and abs(first) > beta**0.5 > abs(second) - 1e-12


def test_the_sum_of_eq_18_tends_to_alpha_over_one_less_beta():
    """The proof of Theorem 3.1 has an integral over time in its place, which does not (chapter 17)."""
    alpha = theory.nc0_law(np.full(10_000, 0.001), 0.01, 0.9) ** 2
    ratio = 0.9 ** np.arange(len(alpha))[::-1] @ alpha / alpha[-1]
    assert ratio == pytest.approx(10, rel=3e-3)
