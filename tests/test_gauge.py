"""NC0 is a gauge: gauge-fixed metrics from stored Gram matrices, the identity of NC3, the spectator theorem, the comparisons."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from ncutils import analysis, optimizers
from ncutils.book import figures
from ncutils.metrics import GAUGE_FIXED, KEYS, class_means, nc_metrics
from ncutils.optimizers import make_optimizer
from ncutils.runs import History, Run
from ncutils.training import train

SHARES = ["gauge_share", "off_span_share", "in_span_share"]


def stored(features, labels, weight, *, dtype=np.float64):
    """A History of one row without gauge-fixed columns, as runs stored before there were any; and nc_metrics of the same."""
    k = len(weight)
    means = class_means(features, labels, k)
    centred, w = means - means.mean(0), weight.double()
    gram = torch.stack([centred @ centred.T, w @ w.T, w @ centred.T]).numpy().astype(dtype)
    exact = nc_metrics(features, labels, weight)
    row = {key: exact[key] for key in KEYS if key not in GAUGE_FIXED} | {"gram": gram.ravel()}
    return History(Run(), pd.DataFrame([row]), {"n_classes": k}), exact


def random_layer(k, p=24, seed=0, shift=0.5):
    """Features in K noisy clusters, and weights with a mean row of some length."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(40 * k) % k
    means, noise = (torch.randn(n, p, dtype=torch.float64, generator=g) for n in (k, len(labels)))
    weight = torch.randn(k, p, dtype=torch.float64, generator=g)
    return means[labels] + 0.3 * noise, labels, weight + 0.5 * means + shift


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("shift", [0.0, 0.5, 5.0])
def test_gauge_fixed_from_grams_is_nc_metrics_of_the_features(k, shift):
    for seed in range(5):
        history, exact = stored(*random_layer(k, seed=seed, shift=shift))
        found = analysis.gauge_fixed(history).iloc[0]
        assert list(found.index) == list(GAUGE_FIXED)
        for key in GAUGE_FIXED:
            assert found[key] == pytest.approx(exact[key], rel=1e-7, abs=1e-10), key
        assert found[SHARES].sum() == pytest.approx(1 - (1 - exact["nc3"] ** 2 / 2) ** 2, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_gauge_fixed_from_float32_grams_is_as_exact_as_they_are(k):
    history, exact = stored(*random_layer(k), dtype=np.float32)
    found = analysis.gauge_fixed(history).iloc[0]
    for key in GAUGE_FIXED:
        assert found[key] == pytest.approx(exact[key], rel=2e-5, abs=1e-6), key


def test_a_trained_run_gives_the_same_with_and_without_its_columns():
    history = train(Run(arch="mlp", width=4, n_train=200, n_test=50, epochs=6, rule="adam", decoupled_wd=0.5))
    columns = analysis.gauge_fixed(history)
    pd.testing.assert_frame_equal(columns, history.frame[[*GAUGE_FIXED]])  # its own are used
    old = dataclasses.replace(history, frame=history.frame.drop(columns=[*GAUGE_FIXED]))
    found = analysis.gauge_fixed(old)
    np.testing.assert_allclose(found, columns, rtol=1e-4, atol=2e-6)
    partly = dataclasses.replace(history, frame=history.frame.assign(nc3c=7.0).drop(columns="nc2wc"))
    assert (analysis.gauge_fixed(partly)["nc3c"] == 7).all()
    assert analysis.gauge_fixed(partly)["nc2wc"].equals(found["nc2wc"])
    (both,) = analysis.with_gauge_fixed({"AdamW": [old]})["AdamW"]
    assert set(both.frame) == set(history.frame) and both.final["nc3c"] == found["nc3c"].iloc[-1]
    assert both.run == history.run and both.info == history.info


def test_what_float32_cannot_say_is_nan():
    features, labels, weight = random_layer(10)
    flat = features.clone()
    flat[labels == 9] = flat[labels == 8]  # two equal means: M has rank 8
    found = analysis.gauge_fixed(stored(flat, labels, weight, dtype=np.float32)[0]).iloc[0]
    assert found[["off_span_share", "in_span_share"]].isna().all() and found.drop(SHARES).notna().all()
    history, exact = stored(flat * 1e-30, labels, weight, dtype=np.float32)  # M^T M is 0 in float32
    found = analysis.gauge_fixed(history).iloc[0]
    assert found[["nc3c", "off_span_share", "in_span_share"]].isna().all()
    assert found["nc2wc"] == pytest.approx(exact["nc2wc"], rel=1e-5)
    decayed, exact = stored(features, labels, weight * 1e-22, dtype=np.float32)  # W W^T is 0, W M is not
    found = analysis.gauge_fixed(decayed).iloc[0]
    assert found.drop("nc2mc").isna().all() and found["nc2mc"] == pytest.approx(exact["nc2mc"], rel=1e-5)


@pytest.mark.parametrize(("gap", "known"), [(1e-2, True), (1e-3, False)])
def test_shares_are_given_up_where_rounding_would_decide_them(gap, known):
    """Two class means that differ by `gap`: the ninth eigenvalue of M^T M is about gap^2 of the first."""
    _, labels, weight = random_layer(10)
    means = torch.linalg.qr(
        torch.randn(24, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q.T
    means[9] = means[8] + gap * means[9]
    history, exact = stored(means[labels], labels, weight, dtype=np.float32)
    found = analysis.gauge_fixed(history).iloc[0]
    assert found[SHARES].notna().tolist() == [True, known, known]
    if known:
        assert found["off_span_share"] == pytest.approx(exact["off_span_share"], abs=1e-3)


def test_a_collapsed_layer_is_zero_not_nan():
    """cos_c comes out just above 1 in some of these."""
    labels, etf = torch.arange(30) % 3, torch.eye(3, dtype=torch.float64) - 1 / 3
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        turned = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=g)).Q[:3]
        history, _ = stored((etf @ turned)[labels], labels, etf @ turned, dtype=np.float32)
        found = analysis.gauge_fixed(history).iloc[0]
        assert found.notna().all() and found["nc3c"] < 1e-3 and found[SHARES].abs().max() < 1e-6


@pytest.mark.counts("bad inputs refused")
def test_a_run_without_grams_and_columns_is_refused():
    bare = History(Run(), pd.DataFrame([{"nc0": 1.0, "nc3": 1.0}]), {"n_classes": 1000})
    with pytest.raises(ValueError, match=r"has neither Gram matrices nor nc2wc, .*in_span_share"):
        analysis.gauge_fixed(bare)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_nc3_is_the_identity_of_nc0_and_centred_nc3(k):
    for seed, shift in ((0, 0.0), (1, 0.5), (2, 3.0)):
        features, labels, weight = random_layer(k, seed=seed, shift=shift)
        m = nc_metrics(features, labels, weight)
        g = m["nc0"] ** 2 / (k * float(weight.square().sum()))
        cos_c = 1 - m["nc3c"] ** 2 / 2
        assert m["nc3"] ** 2 == pytest.approx(2 - 2 * cos_c * math.sqrt(1 - g), abs=1e-12)
        moved = nc_metrics(features, labels, weight - weight.mean(0) + 1.0)
        assert abs(moved["nc3"] - m["nc3"]) > 1e-3 and abs(moved["nc0"] - m["nc0"]) > 1e-3
        for key in ("nc2wc", "nc2wnc", "nc2wac", "nc2mc", "nc3c", "nc1", "nc2", "nc4"):
            assert moved[key] == pytest.approx(m[key], abs=1e-11), key


def trained(rule, *, centre=False, shift=0.0, loss_of=F.cross_entropy, **decay):
    """Features and head of a network of one hidden layer after 150 steps in float64."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, dtype=torch.float64, generator=g)
    y = (x[:, :5] + torch.randn(200, 5, dtype=torch.float64, generator=g)).argmax(1)
    hidden, head = (
        torch.randn(*s, dtype=torch.float64, generator=g).div_(3).requires_grad_()
        for s in ((16, 12), (5, 16))
    )
    head.data += shift
    optimizer = make_optimizer([hidden, head], rule, lr=0.01, momentum=0.9, **decay)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of((x @ hidden.T).tanh() @ head.T, y).backward()
        optimizer.step()
        if centre:
            head.data -= head.data.mean(0)
    return (x @ hidden.T).tanh().detach(), head.detach()


def apart(rule, **fields):
    """How far the features of trainings with the head centred after every step, and with a shifted start, are from the
    usual one's, relative; and the least difference of their NC0 from the usual one's."""
    loss_of = {"loss_of": fields.pop("loss_of", F.cross_entropy)}
    (h, w), *others = (
        trained(rule, **fields, **loss_of, **how) for how in ({}, {"centre": True}, {"shift": 0.7})
    )
    nc0 = w.sum(0).norm()
    return (
        [float((other - h).norm() / h.norm()) for other, _ in others],
        min(float((v.sum(0).norm() - nc0).abs()) for _, v in others),
    )


@pytest.mark.parametrize("rule", ["sgd", "adam", "signum"])
def test_under_decoupled_decay_nc0_is_a_spectator(rule):
    features, nc0 = apart(rule, decoupled_wd=0.3)
    assert max(features) < 1e-12 and nc0 > 0.1


def test_under_coupled_decay_a_linear_rule_keeps_the_spectator_and_others_do_not():
    features, nc0 = apart("sgd", coupled_wd=0.05)
    assert max(features) < 1e-12 and nc0 > 0.01
    for rule in ("adam", "signum"):
        assert min(apart(rule, coupled_wd=0.05)[0]) > 1e-3


def test_a_rule_that_sees_the_size_of_the_weights_or_a_loss_that_sees_the_gauge_breaks_it(monkeypatch):
    class TrustRatio(torch.optim.SGD):
        """The step of each matrix times its norm, as in LARS."""

        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.grad *= p.norm() / p.grad.norm()
            super().step()

    monkeypatch.setitem(optimizers.RULES, "trust", lambda params, lr, *_: TrustRatio(params, lr))
    assert min(apart("trust", decoupled_wd=0.3)[0]) > 1e-3

    def squared(logits, y):
        return F.mse_loss(logits, F.one_hot(y, 5).double())

    assert min(apart("adam", decoupled_wd=0.3, loss_of=squared)[0]) > 1e-3


def history(optimizer, wd, train_acc=1.0, **metrics):
    """A run that was never trained, with these final metrics."""
    fields = {name: metrics.pop(name) for name in ("seed", "momentum") if name in metrics}
    run = Run.named(optimizer, wd, **fields)
    row = {"epoch": run.epochs, "lr": run.lr, "train_acc": train_acc, "nc0": 1.0, "nc3": 1.0} | metrics
    return History(run, pd.DataFrame([row]), {"n_train": 100, "n_classes": 10})


def test_best_decay_against_best_decay():
    adam = [history("Adam", wd, nc3=nc3, nc2w=wd) for wd, nc3 in ((0, 0.5), (0.1, 0.2), (1, 0.3))]
    adam += [
        history("Adam", 5, train_acc=0.9, nc3=0.01, nc2w=5.0),
        history("Adam", 2, seed=1, nc3=0.4, nc2w=2.0),
    ]
    adamw = [history("AdamW", wd, nc3=nc3, nc2w=wd) for wd, nc3 in ((0.1, 0.9), (3, 0.6))]
    assert {(h.run.seed, h.run.wd) for h in analysis.best_of_each(adam)} == {(0, 0.1), (1, 2)}
    found = analysis.paired_best(adam, [adam[0], *adamw], "nc3", "nc2w")
    assert found[["nc3", "nc3_coupled", "nc2w", "nc2w_coupled"]].values.tolist() == [[0.5, 0.2, 0.0, 0.1]]
    (row,) = analysis.paired_best(adam, adamw, "nc2w", by="nc2w").itertuples()
    assert (row.wd, row.wd_coupled) == (0.1, 0)
    same_step = [[history(name, 0.1, momentum=0, nc3=0.5)] for name in ("SGD", "SGDW")]
    assert analysis.paired_best(*same_step, "nc3").empty


def test_ratio_of_medians_and_its_interval():
    """Against a bootstrap written out; what is in one set has much in common, so that sets must be drawn whole."""
    rng = np.random.default_rng(1)
    like = np.repeat(np.arange(30), 1 + np.arange(30) % 6)
    x, x_coupled = (rng.normal(size=30)[like] + 0.2 * rng.normal(size=len(like)) for _ in range(2))
    found = pd.DataFrame({"like": like, "x": np.exp(x), "x_coupled": np.exp(x_coupled)})
    plain = {False: [], True: []}
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(like == k) for k in rng.integers(0, 30, 30)])
        plain[False].append(np.median(x[rows]) - np.median(x_coupled[rows]))
        plain[True].append(np.median(x[rows] - x_coupled[rows]))
    for pairwise, draws in plain.items():
        ratio, low, high = analysis.ratio_of_medians(found, "x", pairwise)
        exact = np.median(x - x_coupled) if pairwise else np.median(x) - np.median(x_coupled)
        assert ratio == pytest.approx(np.exp(exact), rel=1e-12)
        assert np.log([low, high]) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.1)
    assert analysis.ratio_of_medians(found, "x") == analysis.ratio_of_medians(found, "x")  # a seed of its own
    few = analysis.ratio_of_medians(found[found["like"] < 4], "x")
    assert np.isfinite(few[0]) and np.isnan(few[1:]).all()
    assert np.isnan(analysis.ratio_of_medians(found[:0], "x")).all()


def test_the_ledger_stacks_the_shares_of_the_valid_runs():
    shares = [
        dict(zip(SHARES, values))
        for values in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.9, 0, 0), (0, math.nan, 0))
    ]
    runs = [history("AdamW", 1, seed=s, train_acc=0.5 if s == 2 else 1.0, **shares[s]) for s in range(4)]
    axis = figures.ledger({"AdamW": runs, "Adam": [history("Adam", 1, **shares[0])]}, "test").axes[0]
    bars = [[(b.get_x(), b.get_width()) for b in group] for group in axis.containers]
    assert np.allclose(bars, [[(0, 0.2), (0, 0.1)], [(0.2, 0.2), (0.1, 0.2)], [(0.4, 0.2), (0.3, 0.3)]])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["AdamW", "Adam"]
