"""`measure` against the metrics of features taken by hand, its variants against plain numpy, on models of every kind."""

import math
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pandas
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ncutils
from ncutils import Tracker, measure, nc_metrics
from ncutils.measuring import _Network, cdnv, pair_statistics
from ncutils.metrics import KEYS, class_means, nc4
from ncutils.theory import simplex_etf

matplotlib.use("Agg")
K, SIZE = 4, 6


def digits(n=150, seed=0, dtype=torch.float32, spread=1.0):
    """Inputs [n, 6] around K points, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    points = 2 * torch.randn(K, SIZE, generator=torch.Generator().manual_seed(9), dtype=dtype)
    return points[labels] + spread * torch.randn(n, SIZE, generator=generator, dtype=dtype), labels


def network(dtype=torch.float32, bias=True, width=8):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(SIZE, 16),
            nn.ReLU(inplace=True),
            nn.Linear(16, width),
            nn.Tanh(),
            nn.Linear(width, K, bias),
        )
    return model.to(dtype)


def batches(data, size=16, order=None):
    x, y = data
    order = torch.arange(len(y)) if order is None else order
    return [(x[i], y[i]) for i in order.split(size)]


def by_hand(model, data):
    with torch.no_grad():
        return nc_metrics(model[:-1](data[0]), data[1], model[-1].weight, model[-1].bias)


def assert_same(got, expected, rel, names=None):
    for name in names or expected:
        assert got[name] == pytest.approx(expected[name], rel=rel, abs=rel, nan_ok=True), name


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1, 7, 64, 1000]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_all_metrics_are_those_of_the_features(dtype, size, bias, twice, seed):
    """In one pass and in two, in any order and any batches."""
    data, model = digits(seed=seed, dtype=dtype), network(dtype, bias)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(seed))
    got = measure(model, batches(data, size, order), keep=0 if twice else None)
    assert_same(got, by_hand(model, data), 1e-9 if dtype == torch.float64 else 1e-6)
    with torch.no_grad():
        assert got["accuracy"] == pytest.approx(float((model(data[0]).argmax(1) == data[1]).double().mean()))
    assert got.head == "4" and got.n == 150


def variants(h, y, w):
    """Plain transcriptions, with p x p matrices and loops over pairs, in float64."""
    h, y, w = h.double().numpy(), y.numpy(), w.double().numpy()
    mu = np.stack([h[y == k].mean(0) for k in range(K)])
    m, d = mu - mu.mean(0), h - mu[y]
    within, between = d.T @ d / len(h), m.T @ m / K
    u, s, vt = np.linalg.svd(between)
    unit = m / np.linalg.norm(m, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(K) for j in range(i)]
    v = [np.sum(d[y == k] ** 2) / np.sum(y == k) for k in range(K)]
    apart = np.array([np.linalg.norm(unit[i] - unit[j]) for i, j in pairs])
    return {
        "nc1_pinv": np.trace(np.linalg.pinv(between, rcond=h.shape[1] * 1.2e-7) @ within) / K,
        "nc1_svd": np.trace(vt[: K - 1].T @ np.diag(1 / s[: K - 1]) @ u[:, : K - 1].T @ within) / K,
        "nc1_quotient": np.trace(within) / np.trace(between),
        "nc1_cdnv": np.mean([(v[i] + v[j]) / 2 / np.sum((mu[i] - mu[j]) ** 2) for i, j in pairs]),
        "gnc2_dist": apart.var(),
        "gnc2_log": np.log(1 / apart).var(),
        "unc3": np.var([w[k] @ m[k] for k in range(K)], ddof=1),
        "nearest_mean": np.mean(np.linalg.norm(h[:, None] - mu, axis=2).argmin(1) == y),
    }


@pytest.mark.parametrize("keep", [0, None])
def test_variants_of_the_metrics_against_their_definitions(keep):
    data, model = digits(), network()
    got = measure(model, batches(data), keep=keep)
    with torch.no_grad():
        assert_same(got, variants(model[:-1](data[0]), data[1], model[-1].weight), 1e-5)


def test_pinv_and_svd_where_the_means_lose_a_rank():
    """NC1 uses the true rank; torch's default pseudo-inverse also drops directions that are real but small."""
    rng = torch.Generator().manual_seed(0)
    means, y = torch.randn(K, 8, generator=rng), torch.arange(400) % K
    means[1] = means[0] + 1e-3 * torch.randn(8, generator=rng)
    h = means[y] + 1e-3 * torch.randn(400, 8, generator=rng)
    head = nn.Linear(8, K)
    got = measure(head, batches((h, y)))
    expected = variants(h, y, head.weight.detach())
    assert_same(got, {n: expected[n] for n in ("nc1_pinv", "nc1_svd")}, 1e-4)
    assert got["nc1_pinv"] < got["nc1"] / 2
    h[y == 1] = h[y == 0]
    got = measure(head, batches((h, y)))
    assert math.isnan(got["nc1_svd"]) and math.isfinite(got["nc1"])


def test_cdnv_exponent_and_kernels():
    means, v = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    expected = np.mean([float((v[i] + v[j]) / 2 / (means[i] - means[j]).norm()) for i, j in pairs])
    assert cdnv(means, v, exponent=0.5) == pytest.approx(expected, rel=1e-12)
    unit = nn.functional.normalize(means - means.mean(0), dim=1)
    riesz = np.array([float((unit[i] - unit[j]).norm()) ** -5 for i, j in pairs])
    assert pair_statistics(means, "riesz") == pytest.approx((riesz.mean(), riesz.var()), rel=1e-10)
    assert pair_statistics(torch.from_numpy(simplex_etf(5)), "dist")[1] == pytest.approx(0, abs=1e-20)
    assert pair_statistics(means, lambda d: d**-5) == pytest.approx((riesz.mean(), riesz.var()), rel=1e-10)
    with pytest.raises(ValueError, match="kernel = 'cosine' is not allowed: use dist, log, riesz, or a func"):
        pair_statistics(means, "cosine")


def test_values_of_pairs_have_the_metrics_for_means_and_each_its_definition():
    found, n = measure(network(), batches(digits())), K * (K - 1)
    m, v = (found.means - found.means.mean(0)).numpy(), found.classes["variance"].to_numpy()
    apart = np.linalg.norm(m[0] - m[1])
    unit = m / np.linalg.norm(m, axis=1, keepdims=True)
    assert found.pairs("cdnv").loc[0, 1] == pytest.approx((v[0] + v[1]) / 2 / apart**2, rel=1e-12)
    assert found.pairs("cdnv", 0.5).loc[1, 0] == pytest.approx((v[0] + v[1]) / 2 / apart, rel=1e-12)
    assert found.pairs("cdnv").stack().sum() / n == pytest.approx(found["nc1_cdnv"], rel=1e-10)
    assert found.pairs("inner").loc[2, 1] == pytest.approx(m[2] @ m[1], rel=1e-12)
    cosines = found.pairs().stack().dropna()
    assert len(cosines) == n and (cosines + 1 / (K - 1)).abs().mean() == pytest.approx(
        found["nc2a"], rel=1e-6
    )
    for kernel in ("dist", "log", lambda d: d**2):
        mean, variance = pair_statistics(found.means, kernel)
        assert found.pairs(kernel).stack().mean() == pytest.approx(mean, rel=1e-10)
        assert found.pairs(kernel).stack().var(ddof=0) == pytest.approx(variance, rel=1e-8)
    assert found.pairs("dist").loc[0, 1] == pytest.approx(np.linalg.norm(unit[0] - unit[1]), rel=1e-12)
    with pytest.raises(
        ValueError, match="kernel = 'angle' is not allowed: use cosine, inner, cdnv, dist, log, riesz, or"
    ):
        found.pairs("angle")


def test_many_classes_go_in_blocks(monkeypatch):
    means, v = torch.randn(50, 7), torch.rand(50)
    expected = [cdnv(means, v), *pair_statistics(means), *pair_statistics(means, "log")]
    monkeypatch.setattr(
        "ncutils.measuring._blocks", lambda rows: torch.arange(len(rows)).split(7)
    )  # instead of one block
    got = [cdnv(means, v), *pair_statistics(means), *pair_statistics(means, "log")]
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("keep", [0, None])
def test_test_set_and_other_data(keep):
    data, test, other, model = digits(), digits(70, 5, spread=2), torch.randn(30, SIZE), network()
    got = measure(model, batches(data), test=batches(test), ood=[other[:20], other[20:]], keep=keep)
    with torch.no_grad():
        h, new, away = (model[:-1](x) for x in (data[0], test[0], other))
        mu = class_means(h, data[1], K)
        weight, bias = model[-1].weight, model[-1].bias
        assert got["nc4_test"] == nc4(new, mu, weight)
        assert got["nc4_bias_test"] == nc4(new, mu, weight, bias)
        shown = got.table["test"]  # beside NC4 of the training set, which has the bias
        assert (shown["nc4"], shown["nc4_no_bias"]) == (got["nc4_bias_test"], got["nc4_test"])
        assert got["accuracy_test"] == pytest.approx(
            float((model(test[0]).argmax(1) == test[1]).double().mean())
        )
    cosines = torch.cosine_similarity(mu, away.double().mean(0)[None])
    assert got["nc5"] == pytest.approx(float(cosines.abs().mean()), rel=1e-6)
    m, d = (mu - mu.mean(0)).numpy(), (new - mu[test[1]]).double().numpy()
    within = d.T @ d / len(d)
    assert got["nc1_test"] == pytest.approx(
        np.trace(within @ np.linalg.pinv(m.T @ m / K, 1e-10)) / K, rel=1e-5
    )
    assert got["nc1_quotient_test"] == pytest.approx(np.trace(within) / np.trace(m.T @ m / K), rel=1e-5)
    assert got["nearest_mean_test"] == pytest.approx(
        float((torch.cdist(new.double(), mu).argmin(1) == test[1]).double().mean())
    )
    nearest, by_weight = torch.cdist(new.double(), mu).argmin(1), (new @ weight.detach().T).argmax(1)
    for k, row in got.classes.iterrows():
        of_class = test[1] == k
        assert row["n_test"] == of_class.sum()
        assert row["nc4_test"] == pytest.approx(float((nearest == by_weight)[of_class].double().mean()))
        assert row["nearest_mean_test"] == pytest.approx(float((nearest == k)[of_class].double().mean()))
    for labelled in ([(other, None)], [(other, "no labels")], [{"input": other, "labels": None}]):
        assert measure(model, batches(data), ood=labelled)["nc5"] == pytest.approx(got["nc5"], rel=1e-6)


def test_layers_by_name_or_module_with_class_means_for_weights():
    """The layer before a ReLU that works in place keeps its own output."""
    data, model = digits(), network()
    got = measure(model, batches(data), layers=["0", model[3]], test=batches(data))
    assert list(got.frame.index) == ["0", "3", "4"]
    with torch.no_grad():
        for name, h in (("0", model[0](data[0])), ("3", model[:4](data[0]))):
            mu = class_means(h, data[1], K)
            expected = nc_metrics(h, data[1], (mu - mu.mean(0)).float())
            assert_same(got.frame.loc[name], {n: expected[n] for n in ("nc1", "nc2", "nc2n", "nc2a")}, 1e-6)
            right = (torch.cdist(h.double(), mu).argmin(1) == data[1]).double().mean()
            assert got.frame.loc[name, "nearest_mean"] == pytest.approx(float(right))
            assert got.frame.loc[name, "nearest_mean_test"] == pytest.approx(float(right))
    assert got.frame.loc["0", ["nc0", "nc3", "nc4"]].isna().all()
    assert got.frame.loc["4"].to_dict() == pytest.approx(dict(got))


@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.parametrize("bias", [True, False])
def test_some_classes_alone(keep, bias):
    """As if W had their rows alone and the loader their samples; in the order that is asked for."""
    (x, y), (new, of_new), model = digits(), digits(70, 5, spread=2), network(bias=bias)
    kept = [*batches((x, y), 3), (x[y == 1][:2], torch.tensor([1, 1]))]  # a batch that holds none of them
    chosen = torch.tensor([3, 0, 2])
    got = measure(model, kept, classes=(3, 0, 2), test=batches((new, of_new)), layers=["1"], keep=keep)
    smaller = network(bias=bias)
    with torch.no_grad():
        head = nn.Linear(8, 3, bias)
        head.weight.copy_(smaller[-1].weight[chosen])
        if bias:
            head.bias.copy_(smaller[-1].bias[chosen])
        right = torch.cat([model(a).argmax(1) == b for a, b in kept]).double()
    smaller[-1] = head

    def alone(a, b):
        known = torch.isin(b, chosen)
        return [(a[known], (b[known, None] == chosen).long().argmax(1))]

    x, y = (torch.cat(parts) for parts in zip(*kept))
    expected = measure(smaller, alone(x, y), test=alone(new, of_new), layers=["1"])
    own_logits = ["accuracy", "accuracy_test"]
    assert_same(got, {n: v for n, v in expected.items() if n not in own_logits}, 1e-6)
    pandas.testing.assert_frame_equal(
        got.frame.drop(columns=own_logits), expected.frame.drop(columns=own_logits), rtol=1e-6
    )
    assert got["accuracy"] == pytest.approx(float(right[torch.isin(y, chosen)].mean()))
    assert got.classes.index.tolist() == [3, 0, 2] and got.n == int(torch.isin(y, chosen).sum())
    assert torch.equal(got.weight, model[-1].weight.detach().double()[chosen])


def test_all_classes_named_are_all_classes():
    data, model = digits(), network()
    everything = dict(measure(model, batches(data)))
    for all_of_them in (range(K), torch.arange(K), np.arange(K)):
        assert_same(measure(model, batches(data), classes=all_of_them), everything, 1e-12)


class Wrapped(nn.Module):
    """What a model may return, and how it may be called."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.net, self.unused = kind, network(), nn.Linear(3, 3)

    def forward(self, x, scale=None, **ignored):
        logits = self.net(x if scale is None else x * scale)
        return {"dict": {"logits": logits}, "tuple": (logits, x), "none": None}[self.kind]


class Turns(nn.Module):
    """Each batch takes another of two heads."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(SIZE, K), nn.Linear(SIZE, K), 0

    def forward(self, x):
        self.calls += 1
        return (self.first if self.calls % 2 else self.second)(x)


@pytest.mark.parametrize("kind", ["dict", "tuple", "none"])
def test_what_the_model_returns_does_not_matter(kind):
    data = digits()
    got = measure(Wrapped(kind), batches(data))
    assert got.head == "net.4"
    assert_same(got, by_hand(network(), data), 1e-6)


def test_inputs_by_name_and_in_several_parts():
    data, model = digits(), Wrapped("dict")
    expected = by_hand(network(), (2 * data[0], data[1]))
    named = [{"x": x, "scale": torch.tensor(2.0), "labels": y} for x, y in batches(data)]
    assert_same(measure(model, named), expected, 1e-6)
    assert_same(measure(model, [((x, torch.tensor(2.0)), y) for x, y in batches(data)]), expected, 1e-6)
    assert_same(measure(model, [(x, y[:, None]) for x, y in batches(data)]), by_hand(network(), data), 1e-6)


def test_one_class_for_each_token():
    """Features [n, T, p] with labels [n, T]."""
    x, y = digits(144)
    loader = [(x.reshape(12, 12, SIZE), y.reshape(12, 12))]
    assert_same(measure(network(), loader), by_hand(network(), (x, y)), 1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(model),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        lambda model: (model.compile(backend="eager"), model)[1],
    ],
    ids=["compiled", "DataParallel", "both", "compiled in place"],
)
def test_wrapped_models(wrap):
    data, model = digits(), wrap(network())
    model(data[0])  # compiled before anyone looks
    got = measure(model, batches(data), layers=["1"], keep=0)
    assert_same(got, by_hand(network(), data), 1e-6)
    assert list(got.frame.index) == ["1", "4"]


class Named(nn.Module):
    """A model with a child that is called as DataParallel's is, and goes on behind it."""

    def __init__(self):
        super().__init__()
        self.module, self.fc = network(), nn.Linear(K, K)

    def forward(self, x):
        return self.fc(torch.relu(self.module(x)))


def test_a_compiled_model_with_a_child_called_module():
    data, model = digits(), Named()
    got = measure(torch.compile(model, backend="eager"), batches(data))
    assert got.head == "fc" and dict(got) == dict(measure(model, batches(data)))


def test_a_model_on_several_devices_stays_where_it_is():
    data, model = digits(), Named()
    expected = dict(measure(model, batches(data)))
    model.spare = nn.Linear(2, 2, device="meta")
    assert dict(measure(model, batches(data))) == expected and model.spare.weight.is_meta


def test_the_order_of_a_sampler_of_its_own_is_put_back():
    data, order = digits(), torch.Generator().manual_seed(3)
    sampler = torch.utils.data.RandomSampler(data[1], generator=order)
    before = order.get_state()
    measure(network(), DataLoader(TensorDataset(*data), 16, sampler=sampler))
    assert torch.equal(order.get_state(), before)


def test_shares_do_not_depend_on_the_default_type():
    data = digits()
    usual = measure(network(), batches(data), test=batches(data))
    torch.set_default_dtype(torch.float16)
    try:
        model = network(torch.float32)
        model.load_state_dict(NETWORK)
        got = measure(model, batches(data), test=batches(data))
    finally:
        torch.set_default_dtype(torch.float32)
    assert dict(got) == dict(usual) and got.classes.equals(usual.classes)


NETWORK = network().state_dict()


def test_a_part_that_is_compiled():
    data, model = digits(), network()
    model[2] = torch.compile(model[2], backend="eager")
    model(data[0])
    assert_same(measure(model, batches(data)), by_hand(network(), data), 1e-6)


@pytest.mark.parametrize("keep", [0, None])
def test_bf16_autocast_around_the_call(keep):
    """Features are the network's, in bfloat16; their sums and products are not."""
    data, model = digits(), network()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        h = model[:-1](data[0])
        got = measure(model, batches(data), keep=keep)
    assert h.dtype == torch.bfloat16
    expected = nc_metrics(h, data[1], model[-1].weight, model[-1].bias)
    assert_same(got, expected, 1e-6)
    assert got["nc1"] != pytest.approx(by_hand(model, data)["nc1"], rel=1e-6)


def test_the_model_is_left_as_it_was():
    data = digits()
    model = nn.Sequential(nn.Linear(SIZE, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, K))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    order = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data), 16, shuffle=True, generator=order)
    states = torch.get_rng_state(), order.get_state()
    measure(model, loader, test=loader, keep=0)
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(order.get_state(), states[1])
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="no sample"):
        measure(model, batches((data[0], data[1].clamp(max=2))))
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_features_on_a_device_without_float64_are_summed_on_the_cpu():
    assert _Network(network(), None, None, torch.device("mps")).place == torch.device("cpu")
    assert _Network(network(), None, None, torch.device("cuda:1")).place == torch.device("cuda:1")


def test_three_lines_for_a_resnet_and_a_picture():
    model = torchvision.models.resnet18(num_classes=3)
    loader = DataLoader(TensorDataset(torch.randn(24, 3, 32, 32), torch.arange(24) % 3), 8, shuffle=True)
    got = measure(model, loader, layers=["layer1", "layer4"])
    with torch.no_grad():
        headless = torchvision.models.resnet18(num_classes=3)
        headless.load_state_dict(model.state_dict())
        weight, headless.fc = headless.fc, nn.Identity()
        x, y = loader.dataset.tensors
        expected = nc_metrics(headless.eval()(x), y, weight.weight, weight.bias)
    assert_same(got, expected, 1e-5)
    assert got.head == "fc" and re.match(r"fc: N = 24, p = 512, K = 3\n", str(got)) and "nc2wac" in repr(got)
    assert len(got.plot().axes) == 5 and "<table" in got._repr_html_()
    assert got.frame.shape[0] == 3 and isinstance(got, dict) and set(KEYS) <= set(got)
    assert len(measure(model, loader).plot().axes) == 4


def test_a_picture_of_layers_in_which_two_of_the_means_are_one():
    """CDNV, a mean over pairs of classes, is infinite there."""
    x = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1], [5, 5], [5, 6]])
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    got = measure(model, [(x, torch.tensor([0, 0, 1, 1, 2, 2]))], layers=["0"])
    assert np.isinf(got.frame.loc["0", "nc1_cdnv"])
    assert np.isfinite([axis.get_ylim() for axis in got.plot().axes]).all()


def test_a_row_for_each_class():
    data, model = digits(), network()
    got = measure(model, batches(data))
    with torch.no_grad():
        h, w = model[:-1](data[0]).double(), model[-1].weight.double()
    mu = torch.stack([h[data[1] == k].mean(0) for k in range(K)])
    m = mu - mu.mean(0)
    of = got.classes
    assert of["n"].tolist() == torch.bincount(data[1]).tolist()
    assert of["variance"].to_numpy() == pytest.approx(
        [float((h - mu[k])[data[1] == k].square().sum(1).mean()) for k in range(K)], rel=1e-5
    )
    assert of["cosine"].to_numpy() == pytest.approx(torch.cosine_similarity(w, m).numpy(), rel=1e-6)
    assert of["distance"].to_numpy() == pytest.approx(np.sqrt(2 - 2 * of["cosine"]), rel=1e-6)
    assert of["mean_norm"].to_numpy() == pytest.approx(m.norm(dim=1).numpy(), rel=1e-6)
    assert "n_test" not in of
    assert (of["n"] * of["nc4"]).sum() / 150 == pytest.approx(got["nc4"])
    assert got.means.numpy() == pytest.approx(mu.numpy(), abs=1e-6)


def test_tracker_keeps_one_measurement_a_call():
    data, model = digits(), network()
    tracker = Tracker(model, batches(data), layers=["1"])
    with pytest.raises(ValueError, match="nothing was measured yet"):
        _ = tracker.frame
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = tracker()
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    second = tracker(50)
    assert tracker.at == [0, 50] and tracker.measurements == [first, second]
    assert tracker.frame.loc[(50, "4"), "nc1"] == second["nc1"] < first["nc1"]
    assert list(tracker.frame.index) == [(0, "1"), (0, "4"), (50, "1"), (50, "4")]
    lines = tracker.plot().axes[0].lines
    assert [line.get_label() for line in lines] == ["nc0 over its first", "nc1", "nc2", "nc3"]
    assert list(lines[1].get_ydata()) == [first["nc1"], second["nc1"]]
    with pytest.raises(ValueError, match=r"names = \['nc9'\] were not measured"):
        tracker.plot(["nc9"])


class Noisy(torch.utils.data.Dataset):
    """Augmentation: other inputs at each pass."""

    def __init__(self, data, size):
        self.data, self.size = data, size

    def __len__(self):
        return len(self.data[1])

    def __getitem__(self, i):
        x, y = self.data
        return x[i] + self.size * torch.randn(SIZE), y[i]


def test_a_second_pass_with_other_samples_is_detected():
    data, model = digits(), network()
    sentence = "loader gave other samples at its second pass"
    for loader in (
        DataLoader(Noisy(data, 0.1), 16),
        DataLoader(TensorDataset(*data), 16, shuffle=True, drop_last=True),
        DataLoader(
            TensorDataset(*data), 16, sampler=torch.utils.data.RandomSampler(data[1], replacement=True)
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure(model, loader, keep=0)
        measure(model, loader)  # features that are kept are the same
    half = digits(151)
    with torch.autocast("cpu", torch.bfloat16):
        loader = DataLoader(TensorDataset(*half), 16, shuffle=True)
        measure(model, loader, keep=0)
        with pytest.raises(ValueError, match=sentence):
            measure(model, DataLoader(Noisy(data, 1.0), 16), keep=0)


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        return zip(*digits())


def test_a_loader_without_a_length():
    assert_same(measure(network(), DataLoader(Stream(), 16), keep=0), by_hand(network(), digits()), 1e-6)


X, Y = digits()
TWICE = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())


class First(nn.Module):
    """What a recurrent layer gives, without its state."""

    def forward(self, output):
        return output[0]


class Mean(nn.Module):
    """One number for the whole batch beside the logits, which go on."""

    def forward(self, logits):
        return logits.mean(), logits


def broken_head():
    model = network()
    model[-1].weight.data[0, 0] = math.nan
    return model


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("model", "loader", "options", "sentence"),
    [
        (
            network(),
            (b for b in batches((X, Y))),
            {},
            "loader must give its batches each time.*generator does not",
        ),
        (
            network(),
            batches((X, Y)),
            {"test": iter([])},
            "test must give its batches each time.*list_iterator",
        ),
        (network(), 3, {}, "loader must give its batches.*int does not"),
        (network(), [], {}, "loader gave no batch"),
        (network(), batches((X, Y)), {"test": []}, "test gave no sample"),
        (network(), batches((X, Y)), {"ood": []}, "ood gave no sample"),
        (TWICE, batches((X, Y)), {}, "model has no torch.nn.Linear: name its last layer with head"),
        (len, batches((X, Y)), {}, "model must be a torch.nn.Module, got builtin_function"),
        (network(), batches((X, Y)), {"head": "fc"}, "head = 'fc' is no module of the model.*0, 1, 2, 3, 4"),
        (
            network(),
            batches((X, Y)),
            {"head": "3"},
            r"head = '3' must be a linear layer, with a weight \[K, p\]",
        ),
        (Wrapped("none"), batches((X, Y)), {"head": "unused"}, "head did not run: none of unused"),
        (Wrapped("none"), batches((X, Y)), {"layers": ["unused"]}, r"layers = \['unused'\] did not run"),
        (network(), batches((X, Y)), {"layers": ["9"]}, "layers = '9' is no module of the model"),
        (
            network(),
            batches((X, Y)),
            {"layers": ["4"]},
            "layers names '4', the head, whose input is measured",
        ),
        (Turns(), batches((X, Y)), {}, "head did not run: none of first"),
        (network(), batches((X, Y + 1)), {}, r"labels of loader must lie in \[0, 4\).*found 1 to 4"),
        (network(), batches((X, Y - 1)), {}, r"labels of loader must lie in \[0, 4\).*found -1"),
        (network(), batches((X, Y)), {"test": batches((X, Y + 9))}, r"labels of test must lie in \[0, 4\)"),
        (network(), batches((X, Y.double())), {}, "labels of loader must be integers, got torch.float64"),
        (network(), [(X, Y[:5])], {}, r"labels of loader must be one for each of 150 features, got \[5\]"),
        (network(), batches((X, Y.clamp(max=2))), {}, "class 3 of 4 has no sample"),
        (network(), batches((X, Y)), {"classes": 2}, r"classes must be two or more.*got \[2\]"),
        (
            network(),
            batches((X, Y)),
            {"classes": [1]},
            r"classes must be two or more different whole numbers",
        ),
        (
            network(),
            batches((X, Y)),
            {"classes": [1, 1]},
            r"classes must be two .* in \[0, 4\).*got \[1, 1\]",
        ),
        (
            network(),
            batches((X, Y)),
            {"classes": [0, 4]},
            r"classes must be two or more different.*got \[0, 4\]",
        ),
        (network(), batches((X, Y)), {"classes": [0, 1.5]}, r"classes must be two or more different whole"),
        (network(), batches((X, Y.clamp(max=2))), {"classes": [3, 0]}, "class 3 of 4 has no sample"),
        (network(), batches((X, Y)), {"classes": [0, 1], "test": [(X[2:4], Y[2:4])]}, "test gave no sample"),
        (network(), [X], {}, r"loader must give batches \(inputs, labels\).*got Tensor"),
        (network(), [(X, Y, Y)], {}, r"loader must give batches \(inputs, labels\).*got 3 parts"),
        (network(), [{"x": X}], {}, r"loader must give batches \(inputs, labels\).*got a mapping with x"),
        (network(), batches((X * float("nan"), Y)), {}, "features hold NaN or infinity"),
        (network(), batches((X, Y)), {"device": "nowhere"}, "device = 'nowhere' is not to be had here"),
        (
            network(),
            batches((X, Y)),
            {"test": [(X / 0, Y)]},
            "layer '4' gave NaN or infinity for a batch of test",
        ),
        (network(), batches((X, Y)), {"ood": [X * float("nan")]}, "layer '4' gave NaN .* for a batch of ood"),
        (broken_head(), batches((X, Y)), {}, "head: its weight holds NaN or infinity"),
        (nn.Sequential(nn.Linear(SIZE, 1)), batches((X, 0 * Y)), {}, "head = '0' has 1 row; .* needs K >= 2"),
        (Wrapped("none"), batches((X, Y)), {"layers": "unused"}, r"layers = \['unused'\] did not run"),
        (network(), [(X, None)], {}, "labels of loader must be integers, got NoneType"),
        (network(), [(X, ["a"] * len(X))], {}, "labels of loader must be integers, got list"),
        (
            nn.Sequential(nn.GRU(SIZE, 8), First(), nn.Linear(8, K)),
            batches((X, Y)),
            {"head": "0"},
            "head = '0' must be a linear layer",
        ),
        (
            nn.Sequential(nn.Linear(SIZE, K), Mean()),
            batches((X, Y)),
            {"layers": "1"},
            "layer '1' gave no row for each sample",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(model, loader, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        measure(model, loader, **options)
    assert "\n" not in str(error.value)


class To(nn.Module):
    """Features of another type."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs() if x.is_complex() else x.to(torch.float32)


class Back(nn.Linear):
    def forward(self, x):
        weight = self.weight.to(torch.float32)
        return nn.functional.linear(x.to(torch.float32), weight, self.bias)


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool])
def test_types_without_arithmetic_are_refused(dtype):
    batch = [(torch.randn(40, 6), torch.arange(40) % K)]
    told = f"gave {dtype} for a batch of loader: convert it first"
    with pytest.raises(ValueError, match=f"layer '1' {told}"):
        measure(nn.Sequential(nn.Linear(6, 6), To(dtype), Absolute(), Back(6, K)), batch, layers=["1"])
    if dtype != torch.complex64:  # which no linear layer takes
        with pytest.raises(ValueError, match=f"layer '2' {told}"):
            measure(nn.Sequential(nn.Linear(6, 6), To(dtype), Back(6, K)), batch)
    if "float8" in str(dtype):
        head = Back(6, K)
        head.weight = nn.Parameter(head.weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(ValueError, match=f"head: its weight is of type {dtype}: convert it first"):
            measure(nn.Sequential(nn.Linear(6, 6), head), batch)


@pytest.mark.counts("bad inputs refused")
def test_features_whose_width_changes_are_refused():
    """A layer before the pooling, and images of two sizes."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, K))
    images = [(torch.randn(8, 1, size, size), torch.arange(8) % K) for size in (4, 5)]
    measure(model, images)
    with pytest.raises(ValueError, match="layer '0' gave 75 features for a batch of loader, 48 before"):
        measure(model, images, layers=["0"])
    with pytest.raises(ValueError, match="layer '0' gave 75 features for a batch of ood, 48 before"):
        measure(model, images[:1], layers=["0"], ood=images[1:])


MEMORY = """
import resource, torch
from ncutils import measure
N, p, K = 100_000, 512, 10
class Loader:  # makes its batches as it goes
    def __iter__(self):
        g = torch.Generator().manual_seed(0)
        for i in range(0, N, 500):
            yield torch.randn(500, p, generator=g), torch.arange(i, i + 500) % K
class Few(Loader):
    def __iter__(self):
        return iter(list(zip(range(4), super().__iter__())) and [b for _, b in zip(range(4), super().__iter__())])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
head = torch.nn.Linear(p, K)
measure(head, Few(), keep=0)
before = peak()
measure(head, Loader(), keep=0)
print(peak() - before)
"""


def test_streaming_takes_no_memory_of_the_features_size():
    """205 MB of features pass through; what a few batches need was taken before."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30


def test_public_names():
    assert {"measure", "Tracker", "Measurement"} <= set(ncutils.__all__)
    for name in ("measure", "Tracker", "Measurement"):
        assert getattr(ncutils, name) is getattr(ncutils.measuring, name)


@pytest.mark.parametrize("epochs", [0, 30])
def test_agreement_with_the_library_that_the_paper_used(peer, epochs):
    """To its float32, of an untrained network and of one whose training accuracy is 100 %."""
    accumulate, kernels, theirs = peer
    data, test, other, model = digits(400), digits(100, 5), digits(80, 6, spread=3)[0] + 1, network(width=16)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(10 * epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    ours = measure(model, batches(data), test=batches(test), ood=[other])
    with torch.no_grad():
        h, new, away = (model[:-1](x) for x in (data[0], test[0], other))
    w = model[-1].weight.detach()
    of_means = accumulate.MeanAccumulator(K, 16)
    of_means.accumulate(h, data[1])
    means, centre = of_means.compute()
    within, norms = (
        make(K, 16, M=means) for make in (accumulate.CovarAccumulator, accumulate.VarNormAccumulator)
    )
    within.accumulate(h, data[1], means)
    norms.accumulate(h, data[1], means)
    decisions = accumulate.DecAccumulator(K, 16, M=means, W=w)
    decisions.accumulate(new, test[1], w, means)
    of_other = accumulate.MeanAccumulator(K, 16)
    of_other.accumulate(away, torch.arange(80) % K)
    expected = {
        "nc1_pinv": theirs.covariance_ratio(within.compute(), means, centre),
        "nc1_svd": theirs.covariance_ratio(within.compute(), means, centre, "svd"),
        "nc1_quotient": theirs.covariance_ratio(within.compute(), means, centre, "quotient"),
        "nc1_cdnv": theirs.variability_cdnv(norms.compute()[0], means),
        "nc2": theirs.simplex_etf_error(means, centre),
        "nc2w": theirs.structure_error(w, w),
        "nc2m": theirs.self_duality_error(w, means, centre),
        "gnc2_dist": kernels.kernel_stats(means, centre)[1],
        "gnc2_log": kernels.kernel_stats(means, centre, kernel=kernels.log_kernel)[1],
        "unc3": float(theirs.similarities(w, means, centre).var()),
        "nc4_test": theirs.clf_ncc_agreement(decisions),
        "nc5": theirs.orthogonality_deviation(means, of_other.compute()[1]),
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    assert ours.classes["cosine"].to_numpy() == pytest.approx(
        theirs.similarities(w, means, centre, cos=True).numpy(), rel=1e-3, abs=1e-5
    )
    assert ours.classes["nc4_test"].to_numpy() == pytest.approx(decisions.compute()[0].numpy(), rel=1e-4)
    assert ours.classes["distance"].to_numpy() == pytest.approx(
        theirs.distance_norms(w, means, centre).numpy(), rel=1e-3
    )
    assert ours.classes["mean_norm"].to_numpy() == pytest.approx(
        theirs.mean_norms(means, centre).numpy(), rel=1e-4
    )
    grids = {
        "cdnv": kernels.class_dist_norm_vars(norms.compute()[0], means),
        "inner": theirs.interference_grid(means, centre),
        "dist": kernels.kernel_grid(means, centre),
        "log": kernels.kernel_grid(means, centre, kernel=kernels.log_kernel),
    }
    for name, grid in grids.items():
        got, apart = ours.pairs(name).to_numpy(), ~np.eye(K, dtype=bool)
        assert got[apart] == pytest.approx(grid.numpy()[apart], rel=1e-3, abs=1e-5), name
    assert pair_statistics(ours.means, "riesz") == pytest.approx(
        kernels.kernel_stats(means, centre, kernel=kernels.riesz_kernel), rel=1e-2
    )


@pytest.mark.parametrize("k", [300, 20])
def test_pinv_cuts_where_torch_does_with_more_classes_than_features(k):
    p, n, generator = 8, 20, torch.Generator().manual_seed(0)
    means = torch.randn(k, p, generator=generator) * torch.tensor([1.0] * 7 + [1e-3])
    y = torch.arange(k * n) % k
    h = means[y] + 0.01 * torch.randn(k * n, p, generator=generator)
    mu = class_means(h, y, k)
    m, within = mu - mu.mean(0), (h - mu[y]).double()
    inverse = torch.linalg.pinv((m.T @ m / k).float()).double()
    expected = float((inverse @ (within.T @ within / len(h))).trace() / k)
    got = measure(nn.Sequential(nn.Identity(), nn.Linear(p, k)), [(h, y)])["nc1_pinv"]
    assert got == pytest.approx(expected, rel=1e-3)


def test_nc5_does_not_depend_on_the_scale_of_the_features():
    (h, y), (other, _) = digits(), digits(seed=3)
    head = nn.Sequential(nn.Identity(), nn.Linear(SIZE, K))
    expected = measure(head, [(h, y)], ood=[(other + 1, None)])["nc5"]
    for scale in (1e-20, 1e15):
        got = measure(head, [(scale * h, y)], ood=[(scale * (other + 1), None)])["nc5"]
        assert got == pytest.approx(expected, rel=1e-5)


def test_equal_class_means_have_no_nearest_one():
    dead = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, K))
    with torch.no_grad():
        dead[0].weight.zero_()
        dead[0].bias.fill_(-1)
    found = measure(dead, batches(digits()), test=batches(digits(seed=1)))
    for name in ("nc1", "nc4", "nearest_mean", "nc4_test", "nearest_mean_test"):
        assert math.isnan(found[name]), name
    shares = found.classes[["nc4", "nearest_mean", "nc4_test", "nearest_mean_test"]]
    assert shares.isna().all(axis=None) and found["accuracy"] >= 0


def test_a_head_by_a_second_name():
    model = network()

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = model[:4], model[4]
            self.head = self.fc

        def forward(self, x):
            return self.fc(self.body(x))

    by_name = [measure(Once(), batches(digits()), head=name)["nc3"] for name in ("fc", "head")]
    assert by_name[0] == by_name[1]


def test_a_look_at_the_loader_in_the_middle_of_an_epoch_does_not_end_it():
    """With persistent workers a DataLoader has one iterator for everybody."""
    data = torch.utils.data.TensorDataset(X, Y)
    loader = torch.utils.data.DataLoader(data, 30, num_workers=1, persistent_workers=True)
    tracker, batches_seen = Tracker(network(), loader), 0
    for step, _ in enumerate(loader):
        batches_seen += 1
        if step == 1:
            tracker(step)
    assert batches_seen == len(loader) == 5 and tracker.measurements[0].n == len(X)


@pytest.mark.parametrize("keep", ["1GB", -1, True, math.nan])
def test_what_keep_may_be(keep):
    with pytest.raises(
        ValueError, match="keep = .* is not allowed: it must be a number of bytes, 0 or more, or none"
    ):
        measure(network(), batches((X, Y)), keep=keep)


class Adapted(nn.Linear):
    """A linear layer beside which an adapter adds to the logits, merged into the weight while it does not train."""

    def __init__(self, *sizes, rank_one=1.0):
        super().__init__(*sizes)
        self.more, self.merged = rank_one * torch.ones(sizes[1], sizes[0]), False

    def train(self, mode=True):
        if mode == self.merged and isinstance(self.more, torch.Tensor):
            self.weight.data += self.more if not mode else -self.more
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.more.T)


@pytest.mark.counts("bad inputs refused")
def test_a_head_with_an_adapter_is_refused():
    """The metrics of its weight would not be those of what it does."""

    class Never(Adapted):
        def train(self, mode=True):
            return nn.Module.train(self, mode)

    data, model = digits(), network()
    model[-1] = Never(8, K)
    with pytest.raises(ValueError, match="^head = '4' gives other logits than its weight and bias do"):
        measure(model, batches(data))


@pytest.mark.counts("bad inputs refused")
def test_an_adapter_around_the_head_is_not_taken_for_it():
    """Built as PEFT's: the layer that it adds to and the adapter's own are linear, and the adapter's runs last."""

    class Around(nn.Module):
        def __init__(self, base, rank):
            super().__init__()
            self.base_layer = base
            self.down, self.up = nn.Linear(base.in_features, rank), nn.Linear(rank, base.out_features)
            self.on = True

        @property
        def weight(self):
            return self.base_layer.weight

        def forward(self, x):
            return self.base_layer(x) + (self.up(self.down(x)) if self.on else 0)

    data, model = digits(), network()
    expected = measure(model, batches(data))
    model[-1] = Around(model[-1], 2)
    with pytest.raises(ValueError, match="^head = '4' gives other logits than its weight and bias do"):
        measure(model, batches(data))
    named = measure(model, batches(data), head="4.base_layer")
    assert named["nc3"] == expected["nc3"] and named["nc1"] == expected["nc1"]


def test_a_model_whose_mode_does_more_than_set_a_flag_is_left_as_it_was():
    data, model = digits(), network()
    model[-1] = Adapted(8, K)
    model.train()
    model[1].eval()
    before = model[-1].weight.detach().clone()
    measure(model, batches(data))
    assert not model[-1].merged and model.training and not model[1].training and model[-1].training
    torch.testing.assert_close(model[-1].weight.detach(), before)


@pytest.mark.counts("bad inputs refused")
def test_a_layer_that_cannot_be_watched_leaves_no_hook():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(SIZE, 8), nn.ReLU())), nn.Linear(8, K))
    with pytest.raises(ValueError, match="^a head or layer cannot be watched: "):
        measure(model, batches(digits()), layers="0")
    assert not model[1]._forward_hooks


def test_other_data_may_be_a_mapping_without_get():
    """As a tokenizer's batches are: their `get` takes a place, not a name."""

    class Encoding(dict):
        def get(self, key, default=None):
            raise TypeError("list indices must be integers")

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = network()

        def forward(self, inputs):
            return self.of(inputs)

    x, y = digits()
    got = measure(Named(), [{"inputs": x, "labels": y}], ood=[Encoding(inputs=x[:20])])
    assert got["nc5"] == measure(network(), [(x, y)], ood=[x[:20]])["nc5"]


@pytest.mark.counts("bad inputs refused")
def test_a_model_without_numbers_is_refused():
    with pytest.raises(ValueError, match="^model is on device meta"):
        measure(network().to("meta"), batches(digits()))
