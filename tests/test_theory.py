import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils import published, theory
from ncutils.training import Run, lr_per_step, lr_schedule


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], 0.1), "lr must hold"),
        (([-0.1], 0.1), "lr must hold"),
        (([0.1], -1), "wd = -1 is not allowed"),
        (([0.1], float("nan")), "wd = nan is not allowed"),
        (([0.1], 0.1, 1.0), "momentum = 1.0 is not allowed"),
    ],
)
def test_bad_input(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        theory.nc0_law(*arguments)


def test_simplex_of_one():
    with pytest.raises(ValueError, match="K = 1 is not allowed"):
        theory.simplex_etf(1)
