"""nc_metrics against a float64 transcription of appendix B's definitions, p x p matrices and pseudo-inverse included."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils import metrics
from ncutils.metrics import KEYS, ClassSums, class_means, nc4, nc_metrics, singular_values
from ncutils.theory import simplex_etf

APART = [key for key in KEYS if key != "nc4"]  # a share of samples, which ties decide


def transcription(h, y, w, b=None):
    h, w = np.asarray(h, dtype=np.float64), np.asarray(w, dtype=np.float64)
    y = np.asarray(y)
    K, N = len(w), len(h)
    mu = np.stack([h[y == k].mean(0) for k in range(K)])
    m = mu - mu.mean(0)
    sigma_b = sum(np.outer(v, v) for v in m) / K
    sigma_w = sum(np.outer(v, v) for v in h - mu[y]) / N
    etf = (np.eye(K) - np.ones((K, K)) / K) / math.sqrt(K - 1)

    def frobenius(gram):
        return np.linalg.norm(gram / np.linalg.norm(gram) - etf)

    def norms(v):
        lengths = np.linalg.norm(v, axis=1)
        return lengths.std() / lengths.mean()

    def angles(v):
        off = [
            abs(v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j]) + 1 / (K - 1))
            for i in range(K)
            for j in range(K)
            if i != j
        ]
        return np.mean(off)

    def share(part):
        return np.sum(part**2) / np.sum(w**2)

    wc = (np.eye(K) - np.ones((K, K)) / K) @ w
    span = np.linalg.pinv(m, rcond=1e-7) @ m  # p x p projection onto the class means' span
    direction = m / np.linalg.norm(m)
    logits = h @ w.T + (0 if b is None else np.asarray(b, dtype=np.float64))
    distances = np.linalg.norm(h[:, None] - mu[None], axis=2)
    return {
        "nc0": np.linalg.norm(w.sum(0)),
        "nc1": np.trace(sigma_w @ np.linalg.pinv(sigma_b, rcond=1e-13, hermitian=True)) / K,
        "nc2": frobenius(m @ m.T),
        "nc2n": norms(m),
        "nc2a": angles(m),
        "nc2w": frobenius(w @ w.T),
        "nc2wn": norms(w),
        "nc2wa": angles(w),
        "nc2m": frobenius(w @ m.T),
        "nc3": np.linalg.norm(w / np.linalg.norm(w) - m / np.linalg.norm(m)),
        "nc2wc": frobenius(wc @ wc.T),
        "nc2wnc": norms(wc),
        "nc2wac": angles(wc),
        "nc2mc": frobenius(wc @ m.T),
        "nc3c": np.linalg.norm(wc / np.linalg.norm(wc) - direction),
        "gauge_share": np.linalg.norm(w.sum(0)) ** 2 / K / np.sum(w**2),
        "off_span_share": share(wc - wc @ span),
        "in_span_share": share(wc @ span - np.sum(wc * direction) * direction),
        "nc4": np.mean(logits.argmax(1) == distances.argmin(1)),
    }


def ties(h, w, b, mu):
    """Share of samples whose two nearest means, or two largest logits, differ by rounding only: NC4 may count them."""
    logits = np.sort(h @ w.T + (0 if b is None else b), axis=1)
    distances = np.sort(np.linalg.norm(h[:, None] - mu[None], axis=2) ** 2, axis=1)
    gap = np.minimum(logits[:, -1] - logits[:, -2], distances[:, 1] - distances[:, 0])
    return np.mean(gap < 1e-11 * (1 + np.abs(h).max()) ** 2)


@st.composite
def problems(draw):
    """Random, imbalanced, shifted, collapsed features; p smaller and larger than K."""
    K = draw(st.integers(2, 12))
    p = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(1, draw(st.sampled_from([3, 60])), K)
    y = rng.permutation(np.repeat(np.arange(K), counts))
    spread = draw(st.sampled_from([0.0, 1e-3, 0.3, 3.0]))
    shift = draw(st.sampled_from([0.0, 5.0]))
    means = rng.normal(size=(K, p)) + shift
    if draw(st.booleans()) and K > 3:
        means[1] = means[0]  # two classes on one mean: Sigma_B loses a rank
    h = means[y] + spread * rng.normal(size=(len(y), p))
    return h, y, rng.normal(size=(K, p)), rng.normal(size=K) if draw(st.booleans()) else None


@settings(max_examples=150, deadline=None)
@given(problems())
def test_float64_matches_the_transcription(problem):
    h, y, w, b = problem
    got = nc_metrics(
        torch.from_numpy(h), torch.from_numpy(y), torch.from_numpy(w), b if b is None else torch.from_numpy(b)
    )
    expected = transcription(h, y, w, b)
    assert tuple(got) == KEYS
    mu = np.stack([h[y == k].mean(0) for k in range(len(w))])
    eigenvalues = np.linalg.svd(mu - mu.mean(0), compute_uv=False) ** 2
    condition = eigenvalues[0] / eigenvalues[eigenvalues > 1e-13 * eigenvalues[0]][-1]
    for key in (
        KEYS
    ):  # the transcription inverts Sigma_B, so that it loses as many digits as its condition number has
        if key != "nc4":
            assert got[key] == pytest.approx(expected[key], rel=1e-7 + 1e-14 * condition, abs=1e-10), key
    assert abs(got["nc4"] - expected["nc4"]) <= ties(h, w, b, mu) + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(10, 64), (10, 512), (4, 3), (25, 100)]))
def test_float32_is_within_1e_6_of_float64(seed, shape):
    K, p = shape
    rng = np.random.default_rng(seed)
    y = np.arange(200 * K) % K
    h = (rng.normal(size=(K, p))[y] + 0.5 * rng.normal(size=(len(y), p))).astype(np.float32)
    w = rng.normal(size=(K, p)).astype(np.float32)
    got = nc_metrics(*(torch.from_numpy(a) for a in (h, y, w)))
    expected = transcription(h, y, w)
    for key in KEYS:
        if key != "nc4":
            assert got[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-6), key
    assert abs(got["nc4"] - expected["nc4"]) <= 2 / len(y)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(2, 5), (3, 40), (4, 3), (5, 5), (10, 64), (25, 100)]),
    st.sampled_from([20, 200, 1000]),
    st.sampled_from([0.05, 0.5, 2]),
    st.sampled_from([0, 3, 10]),
)
def test_sums_in_float32_are_kept_only_where_they_cost_no_digits(seed, shape, n, spread, shift):
    """From means far apart to means that nearly lose a rank, where float32 sums would put NC1 off by 1e-3."""
    (K, p), rng = shape, np.random.default_rng(seed)
    y = torch.arange(n * K) % K
    h = rng.normal(size=(K, p))[y] + shift + spread * rng.normal(size=(n * K, p))
    h, w = (
        torch.from_numpy(h.astype(np.float32)),
        torch.from_numpy(rng.normal(size=(K, p)).astype(np.float32)),
    )
    got, expected = nc_metrics(h, y, w), nc_metrics(h.double(), y, w.double())
    means = class_means(h.double(), y, K)
    centred = means - means.mean(0)
    # NC2M divides by ||W M||, which is small where W is almost orthogonal to M
    share = float((w.double() @ centred.T).norm() / (w.double().norm() * centred.norm()))
    close = dict.fromkeys(APART, 1e-6) | {"nc1": 0, "nc2m": 1e-6 * max(1, 0.3 / share)}
    for key in APART:
        assert got[key] == pytest.approx(expected[key], rel=1e-6, abs=close[key]), key


def test_many_classes_in_float32_match_float64():
    """Above 64 classes the singular values come from a Gram matrix; two equal means take a rank from it."""
    rng = np.random.default_rng(3)
    K, p = 80, 120
    y, means = np.arange(20 * K) % K, rng.normal(size=(K, p)) + 3
    h = (means[y] + 0.5 * rng.normal(size=(len(y), p))).astype(np.float32)
    h[y == 1] = h[y == 0]
    h, y, w = torch.from_numpy(h), torch.from_numpy(y), torch.from_numpy(rng.normal(size=(K, p)))
    got, expected = nc_metrics(h, y, w.float()), nc_metrics(h.double(), y, w.float().double())
    for key in APART:
        assert got[key] == pytest.approx(expected[key], rel=1e-6), key
    assert (
        abs(got["nc4"] - expected["nc4"]) <= 2 / len(y) + (y == 1).double().mean() * 2
    )  # classes 0 and 1 tie


@pytest.mark.parametrize("K", [2, 3, 4, 10])
def test_exact_collapse_is_zero(K):
    etf = torch.from_numpy(simplex_etf(K))
    y = torch.arange(5 * K) % K
    got = nc_metrics(
        3 * etf[y] + 7, y, 0.5 * etf, bias=-3.5 * etf.sum(1)
    )  # the bias undoes the features' offset
    for key in KEYS:
        assert got[key] == pytest.approx(1.0 if key == "nc4" else 0.0, abs=1e-6), key


def test_collapsed_float32_features_keep_their_digits():
    """Within-class variance a million times smaller than the means."""
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 4
    h = (rng.normal(size=(4, 32))[y] + 1e-3 * rng.normal(size=(2000, 32))).astype(np.float32)
    w = rng.normal(size=(4, 32)).astype(np.float32)
    got = nc_metrics(*(torch.from_numpy(a) for a in (h, y, w)))["nc1"]
    assert got == pytest.approx(transcription(h, y, w)["nc1"], rel=1e-5)


def test_collapse_to_1e_5_of_the_offset_loses_no_digit_to_rounded_means():
    """All features near one point far from the origin: their means in float32 are off by a hundredth of the spread."""
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 4
    h = 1 + 1e-5 * (rng.normal(size=(4, 32))[y] + rng.normal(size=(2000, 32)))
    h = torch.from_numpy(h.astype(np.float32))
    w = torch.from_numpy(rng.normal(size=(4, 32)).astype(np.float32))
    got, expected = (
        nc_metrics(h, torch.from_numpy(y), w),
        nc_metrics(h.double(), torch.from_numpy(y), w.double()),
    )
    assert got["nc1"] == pytest.approx(expected["nc1"], rel=1e-6)
    assert got["nc1"] == pytest.approx(transcription(h, y, w)["nc1"], rel=1e-6)
    assert abs(got["nc4"] - expected["nc4"]) <= 2 / len(y)


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float32, (1e-36, 1e-25, 1e-6, 1e9, 1e18, 1e36, 3e37)),
        (torch.float64, (1e-305, 1e-160, 1e160, 1e300, 2e307)),
        (torch.bfloat16, (2.0**-110, 2.0**-60, 2.0**60, 2.0**124)),
        (torch.float16, (2.0**-9, 2.0**12)),
    ],
)
@pytest.mark.parametrize("K", [4, 80, 300])
def test_the_scale_of_features_and_weights_does_not_matter(dtype, scales, K):
    """Over the type's range, all but NC0 (and with a bias, NC4) are the same at any scale."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(20 * K) % K
    h = torch.randn(K, 100, generator=generator, dtype=dtype)[y] + torch.randn(
        len(y), 100, generator=generator
    )
    h = h.to(dtype) if dtype.itemsize > 2 else h.mul(8).round().div(8).to(dtype)  # exact at any scale
    w = torch.randn(K, 100, generator=generator, dtype=dtype)
    expected = nc_metrics(h, y, w)
    of_test = nc4(h + 1, class_means(h, y, K), w)
    for scale in scales:
        for got in (nc_metrics(h * scale, y, w), nc_metrics(h, y, w * (scale if dtype.itemsize > 2 else 1))):
            for key in APART[1:]:
                assert got[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-7), (scale, key)
            assert abs(got["nc4"] - expected["nc4"]) <= 1 / len(y)
        assert nc_metrics(h * scale, y, w)["nc0"] == pytest.approx(expected["nc0"], rel=1e-6)
        if dtype.itemsize > 2 and scale < 1e36:  # a sum of K weights in their range
            assert nc_metrics(h, y, w * scale)["nc0"] == pytest.approx(expected["nc0"] * scale, rel=1e-6)
        assert abs(nc4((h + 1) * scale, class_means(h * scale, y, K), w) - of_test) <= 1 / len(y)


def test_among_the_smallest_numbers_the_means_keep_their_digits():
    """Eighths times 2^-1060 are exact, their means would not be: float64 ends at 2^-1074."""
    generator = torch.Generator().manual_seed(3)
    y, scale = torch.arange(60) % 4, 2.0**-1060
    h = torch.randn(4, 9, generator=generator)[y] + torch.randn(60, 9, generator=generator)
    h, b = (x.mul(8).round().div(8).double() for x in (h, torch.randn(4, generator=generator)))
    w = torch.randn(4, 9, generator=generator)
    expected, got = nc_metrics(h, y, w, b), nc_metrics(h * scale, y, w, b * scale)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-14)
    decided = b.argmax()  # by the bias alone, beside which W h is nothing
    of_class = float((torch.cdist(h, class_means(h, y, 4)).argmin(1) == decided).double().mean())
    assert nc_metrics(h * scale, y, w, b)["nc4"] == of_class


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_a_bias_of_any_size_decides_where_it_should(scale):
    """NC4's decisions against float64's, where W h is far under the bias and far over it."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 4
    h = torch.randn(4, 20, generator=generator)[y] + torch.randn(400, 20, generator=generator)
    w, b = torch.randn(4, 20, generator=generator), torch.randn(4, generator=generator)
    mu = torch.stack([h[y == k].double().mean(0) for k in range(4)])
    logits = scale * h.double() @ w.double().T + b.double()
    expected = (logits.argmax(1) == torch.cdist(h.double(), mu).argmin(1)).double().mean()
    assert abs(nc_metrics(h * scale, y, w, b)["nc4"] - expected) <= 1 / 400
    assert abs(nc_metrics(h, y, w * scale, b)["nc4"] - expected) <= 1 / 400
    assert abs(nc4(h * scale, mu * scale, w, b) - expected) <= 1 / 400
    h = h + 3 * torch.randn(400, 20, generator=generator)
    mu = torch.stack([h[y == k].double().mean(0) for k in range(4)])
    logits = scale**2 * h.double() @ w.double().T + b.double()
    expected = (logits.argmax(1) == torch.cdist(h.double(), mu).argmin(1)).double().mean()
    assert abs(nc_metrics(h * scale, y, w * scale, b)["nc4"] - expected) <= 1 / 400


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(256, 300), (300, 40), (300, 12), (500, 128)]),
    st.sampled_from([0.02, 0.3, 1.0, 4.0]),
    st.sampled_from(["own", "partly", "random"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_shortcuts_of_many_classes_change_no_decision(seed, shape, spread, kind, biased, in_pairs, dtype):
    """From 256 classes on, NC4 of features whose class is clear is not computed; against all distances and logits."""
    (K, p), generator = shape, torch.Generator().manual_seed(seed)
    y = torch.arange(4 * K) % K
    means = torch.randn(K, p, generator=generator, dtype=dtype)
    if in_pairs:  # then the nearest mean is near, and so is the row of W that gives the next largest logit
        means[1::2] = means[::2] + 0.1 * means[1::2]
    h = means[y] + spread * torch.randn(len(y), p, generator=generator, dtype=dtype) + 3
    w = torch.randn(K, p, generator=generator, dtype=dtype)
    w = {"own": means, "partly": means + w, "random": w}[kind]
    b = torch.randn(K, generator=generator, dtype=dtype) * math.sqrt(p) if biased else None
    if biased and kind == "own":  # with which W decides by the nearest of `means`
        b = -(means * (means / 2 + 3)).sum(1)
    got, mu = nc_metrics(h, y, w, b), class_means(h, y, K)
    logits = h.double() @ w.double().T + (0 if b is None else b.double())
    distances = torch.cdist(h.double(), mu, compute_mode="donot_use_mm_for_euclid_dist")
    gaps = torch.minimum(
        logits.topk(2).values.diff().abs().min(1).values / p,
        distances.topk(2, largest=False).values.diff()[:, 0],
    )
    expected = (logits.argmax(1) == distances.argmin(1)).double().mean()
    open_ = (gaps < (1e-4 if dtype == torch.float32 else 1e-10)).double().mean()
    assert abs(got["nc4"] - float(expected)) <= float(open_)


@pytest.mark.parametrize("random", [False, True])
def test_a_shortcut_that_settles_little_is_given_up(random):
    """Where W gives mu_y's own class, this does not beat the nearest mean's; where W is random, the class it gives mu_y does."""
    generator, y = torch.Generator().manual_seed(0), torch.arange(3000) % 300
    means, other = torch.randn(2, 300, 20, generator=generator)
    h = means[y] + torch.randn(len(y), 20, generator=generator)
    collapse = metrics.Collapse(class_means(h, y, 300), other if random else means)
    tried = []
    for _ in range(3):
        collapse.add(h, y)
        tried.append((collapse.tried, collapse.settled))
    (first, of_first), *_, (last, of_last) = tried
    assert first > 0 and (2 * of_first >= first) == random
    assert (last, of_last) == ((3 * first, 3 * of_first) if random else (first, of_first))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_goes_in_blocks_of_classes_is_the_same_in_one(dtype, monkeypatch):
    """Rows of unequal norm, so that the first block misleads about the norm of all; rounded means of more than 256 classes."""
    K, p = 600, 40
    generator, y = torch.Generator().manual_seed(0), torch.arange(4 * 600) % 600
    means = 10_000 + torch.randn(K, p, generator=generator) * torch.linspace(0.2, 3, K)[:, None]
    h = (means[y] + 0.01 * torch.randn(len(y), p, generator=generator)).to(dtype)
    w = (torch.randn(K, p, generator=generator) * torch.linspace(3, 0.2, K)[:, None]).to(dtype)
    expected = transcription(h.double().numpy(), y.numpy(), w.double().numpy())
    for block in (2**18, 2**12):
        monkeypatch.setattr(metrics, "_BLOCK", block)
        got = nc_metrics(h, y, w)
        for key in APART[1:]:
            assert got[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-8 * (key != "nc1")), (block, key)


@pytest.mark.parametrize("K", [4, 300])
def test_variances_of_the_classes(K):
    generator, y = torch.Generator().manual_seed(0), torch.arange(10 * K) % K
    h, w = torch.randn(len(y), 20, generator=generator) * 100, torch.randn(K, 20, generator=generator)
    means = class_means(h.double(), y, K)
    collapse = metrics.Collapse(means, w, variances=True)
    for part in torch.arange(len(y)).split(7 * K):
        collapse.add(h[part], y[part])
    squares = (h.double() - means[y]).square().sum(1)
    expected = torch.stack([squares[y == k].sum() for k in range(K)])
    assert torch.allclose(collapse.squares * 4.0**collapse.exponent, expected, rtol=1e-5)
    assert collapse.counts.tolist() == [10] * K and collapse.counts.dtype == torch.int64


@pytest.mark.parametrize("setting", ["autocast", "medium"])
def test_the_products_of_metrics_are_float32_whatever_the_surroundings_say(setting):
    h, y, w = (
        torch.randn(2000, 64) + torch.arange(2000)[:, None] % 4,
        torch.arange(2000) % 4,
        torch.randn(4, 64),
    )
    expected, before = nc_metrics(h, y, w), torch.get_float32_matmul_precision()
    try:
        if setting == "medium":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            got = nc_metrics(h, y, w)
            assert nc4(h, class_means(h, y, 4), w) == nc_metrics(h, y, w)["nc4"]
        assert torch.get_float32_matmul_precision() == ("medium" if setting == "medium" else before)
    finally:
        torch.set_float32_matmul_precision(before)
    assert got == expected


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_ledger_adds_up_and_fixing_the_gauge_changes_no_decision(problem):
    """1 - cos^2 of W and M^T is the sum of the three shares; NC3^2 = 2 - 2 cos_c sqrt(1 - gauge_share)."""
    h, y, w, b = (None if a is None else torch.from_numpy(a) for a in problem)
    got, centred = nc_metrics(h, y, w, b), nc_metrics(h, y, w - w.mean(0), b)
    cosine, cosine_c = 1 - got["nc3"] ** 2 / 2, 1 - got["nc3c"] ** 2 / 2
    shares = got["gauge_share"] + got["off_span_share"] + got["in_span_share"]
    assert shares == pytest.approx(1 - cosine**2, abs=1e-12)
    assert got["nc3"] ** 2 == pytest.approx(2 - 2 * cosine_c * math.sqrt(1 - got["gauge_share"]), abs=1e-12)
    assert centred["nc0"] == pytest.approx(0, abs=1e-12) and centred["gauge_share"] < 1e-28
    for key, fixed in {
        "nc2w": "nc2wc",
        "nc2wn": "nc2wnc",
        "nc2wa": "nc2wac",
        "nc2m": "nc2mc",
        "nc3": "nc3c",
    }.items():
        assert centred[key] == pytest.approx(got[fixed], abs=1e-9), key
    for key in ("nc1", "nc2", "nc2n", "nc2a"):
        assert centred[key] == pytest.approx(got[key], nan_ok=True, rel=1e-9), key
    h, y, w, b = problem
    tied = ties(h, w, b, np.stack([h[y == k].mean(0) for k in range(len(w))]))
    assert abs(centred["nc4"] - got["nc4"]) <= tied + 1e-12 or math.isnan(got["nc4"])


@settings(max_examples=60, deadline=None)
@given(problems())
def test_nc4_of_other_features(problem):
    """On the training features it is nc_metrics' own; a plain count where each sample is compared on its own."""
    h, y, w, b = problem
    mu = np.stack([h[y == k].mean(0) for k in range(len(w))])
    new = h[::-1] + 0.3
    nearest = np.linalg.norm(new[:, None] - mu[None], axis=2).argmin(1)
    expected = np.mean((new @ w.T + (0 if b is None else b)).argmax(1) == nearest)
    got = nc4(*(None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in (new, mu, w, b)))
    assert abs(got - expected) <= ties(new, w, b, mu) + 1e-12
    assert math.isnan(nc4(torch.zeros(0, len(mu[0])), torch.from_numpy(mu), torch.from_numpy(w)))


@pytest.mark.parametrize(("dtype", "n"), [("float32", 500), ("float64", 500_000)])
def test_rank_is_the_true_one(dtype, n):
    """Five class means in a plane of R^50, far from the origin: Sigma_B has rank 2, its other directions are rounding."""
    rng = np.random.default_rng(1)
    means = rng.normal(size=(5, 2)) @ rng.normal(size=(2, 50)) + 10
    y = np.arange(n) % 5
    noise = 0.1 * rng.normal(size=(n // 10, 50))
    h = np.empty((n, 50))
    for k in range(5):  # noise that cancels within each class, so that the sample means keep the plane
        h[y == k] = means[k] + np.concatenate([noise, -noise])
    w = rng.normal(size=(5, 50))
    m = means - means.mean(0)
    within = 2 * noise.T @ noise / (n / 5)
    exact = np.trace(within @ np.linalg.pinv(m.T @ m / 5, rcond=1e-12)) / 5
    h, w = (torch.from_numpy(values.astype(dtype)) for values in (h, w))
    assert nc_metrics(h, torch.from_numpy(y), w)["nc1"] == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("gauge", [0, 1e-12, 1e-8, 1e-3, 10])
@pytest.mark.parametrize("noise", [0, 1e-12, 1e-8, 1e-3])
def test_nc3_keeps_its_digits_near_self_duality(noise, gauge):
    """Eq. 10 itself, at W near a multiple of M^T and with a gauge part of its own: no digit is lost between the two."""
    torch.manual_seed(0)
    y, h = torch.arange(40) % 4, torch.randn(40, 6, dtype=torch.float64)
    m = class_means(h, y, 4)
    m -= m.mean(0)
    w = 3 * (m + noise * torch.randn(4, 6, dtype=torch.float64) + gauge * torch.randn(6, dtype=torch.float64))
    got, w_c = nc_metrics(h, y, w), w - w.mean(0)
    expected = {"nc3": (w / w.norm() - m / m.norm()).norm(), "nc3c": (w_c / w_c.norm() - m / m.norm()).norm()}
    for key, value in expected.items():
        assert got[key] == pytest.approx(float(value), rel=1e-6, abs=2e-15), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [4, 80, 300])
def test_all_work_is_done_on_the_device_of_the_features(K, dtype):
    """What is made where torch is told to make it, a device that cannot compute, fails."""
    y = torch.arange(20 * K) % K
    h, w, b = (torch.randn(n, 100, dtype=dtype) for n in (20 * K, K, K))
    for measured in (
        lambda: nc_metrics(h, y, w, b[:, 0]),
        lambda: nc_metrics(h.T.contiguous().T, y, w),
        lambda: {"nc4": nc4(h, class_means(h, y, K), w, b[:, 0])},
        lambda: dict(enumerate(singular_values(w))),
    ):
        expected = measured()
        with torch.device("meta"):
            assert measured() == expected


def test_degenerate_cases_are_nan_not_noise():
    y = torch.arange(20) % 4
    w = torch.randn(4, 6)
    same_means = nc_metrics(torch.ones(20, 6), y, w)
    assert all(math.isnan(same_means[key]) for key in ("nc1", "nc2", "nc3", "nc3c", "off_span_share", "nc4"))
    assert math.isnan(nc4(torch.ones(20, 6), torch.ones(4, 6).double(), w))
    of_different_sums = torch.full((20_000, 6), 0.1).double(), torch.randint(0, 4, (20_000,))
    for h in (of_different_sums[0], of_different_sums[0].float()):
        rounded = nc_metrics(h, of_different_sums[1], w.to(h.dtype))
        assert all(
            math.isnan(rounded[key]) for key in ("nc1", "nc2", "nc2a", "nc2m", "nc3", "nc3c", "nc4")
        ), h.dtype
    assert math.isfinite(same_means["nc0"]) and 0 < same_means["gauge_share"] < 1
    pure_gauge = nc_metrics(torch.randn(20, 6), y, torch.randn(6).expand(4, 6))
    assert all(math.isnan(pure_gauge[key]) for key in ("nc2wc", "nc2wac", "nc2mc", "nc3c"))
    assert pure_gauge["gauge_share"] == pytest.approx(1)
    assert pure_gauge["nc3"] == pytest.approx(math.sqrt(2))
    dead = nc_metrics(torch.randn(20, 6), y, torch.zeros(4, 6))
    assert dead["nc0"] == 0 and math.isnan(dead["nc3"]) and math.isfinite(dead["nc2"])


def test_formula_normalisation_prints_the_factors():
    h, y, w = torch.randn(40, 6), torch.arange(40) % 4, torch.randn(4, 6)
    reported, formula = nc_metrics(h, y, w), nc_metrics(h, y, w, normalisation="formula")
    factor = {"nc0": 1 / 40, "nc2": 1 / 16, "nc2w": 1 / 16, "nc2m": 1 / 16, "nc3": 1 / 24}
    factor |= {"nc2wc": 1 / 16, "nc2mc": 1 / 16, "nc3c": 1 / 24}
    for key in KEYS:
        assert formula[key] == pytest.approx(factor.get(key, 1) * reported[key])


def test_sigma_w_at_the_global_mean_could_not_fall_below_0_9():
    """Erratum: the text's Sigma_W is the total covariance; Eq. 2 with it is NC1 + (K-1)/K."""
    rng = np.random.default_rng(0)
    y = np.arange(1000) % 10
    h = rng.normal(size=(10, 20))[y] + 0.01 * rng.normal(size=(1000, 20))
    mu = np.stack([h[y == k].mean(0) for k in range(10)])
    m = mu - mu.mean(0)
    total = (h - mu.mean(0)).T @ (h - mu.mean(0)) / len(h)
    as_printed = np.trace(total @ np.linalg.pinv(m.T @ m / 10, rcond=1e-9, hermitian=True)) / 10
    ours = nc_metrics(torch.from_numpy(h), torch.from_numpy(y), torch.randn(10, 20))["nc1"]
    assert as_printed == pytest.approx(ours + 0.9, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_nc3_and_nc2w_bound_nc0(problem):
    """Chapter 01: NC0 <= sqrt(K) ||W|| NC3 and NC0^2 <= K ||W W^T|| NC2W."""
    h, y, w, _ = problem
    m = nc_metrics(*(torch.from_numpy(a) for a in (h, y, w)))
    K = len(w)
    assert m["nc0"] <= math.sqrt(K) * np.linalg.norm(w) * m["nc3"] * (1 + 1e-9)
    assert m["nc0"] ** 2 <= K * np.linalg.norm(w @ w.T) * m["nc2w"] * (1 + 1e-9)


def test_m_star_squared():
    """Proposition 2.1's proof takes (M*)^2 = M*; it is M* / sqrt(K - 1)."""
    gram = simplex_etf(7) @ simplex_etf(7).T
    m_star = gram / np.linalg.norm(gram)
    assert np.allclose(m_star @ m_star, m_star / math.sqrt(7 - 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_layouts(dtype):
    h = torch.randn(6, 90, generator=torch.Generator().manual_seed(0)).T.to(dtype)  # not contiguous
    y, w = torch.arange(90, dtype=torch.int32) % 3, torch.randn(3, 6)
    got, expected = nc_metrics(h, y, w), transcription(h.double(), y, w)
    for key in KEYS:
        assert got[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key


def test_no_gradient_and_no_change_of_the_inputs():
    w = torch.randn(3, 5, requires_grad=True)
    h, y = torch.randn(30, 5, requires_grad=True), torch.arange(30) % 3
    before = [part.detach().clone() for part in (h, y, w)]

    def kept(tensor):
        raise AssertionError("a tensor is kept for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda _: None):
        nc_metrics(h, y, w)
    assert all(torch.equal(part, was) for part, was in zip((h, y, w), before))


@pytest.mark.parametrize(
    ("K", "dtype"), [(4, torch.uint8), (4, torch.int8), (4, torch.int32), (300, torch.int16)]
)
def test_labels_of_any_integer_type(K, dtype):
    y = torch.arange(20 * K) % K
    h, w = torch.randn(len(y), 40), torch.randn(K, 40)
    assert nc_metrics(h, y.to(dtype), w) == nc_metrics(h, y, w)
    assert torch.equal(class_means(h.double(), y.to(dtype), K), class_means(h.double(), y, K))
    sums = ClassSums(K, 40, h.device)
    sums.add(h, y.to(dtype))
    assert torch.equal(sums.means(), class_means(h.double(), y, K))


def test_class_means_are_summed_in_float64():
    """Sixteen whole numbers add up in float32, four thousand do not."""
    h, y = torch.randint(-(2**18), 2**18, (4000, 6)).float(), torch.arange(4000) % 4
    expected = torch.stack([h[y == k].double().mean(0) for k in range(4)])
    assert torch.equal(class_means(h, y, 4), expected)


@pytest.mark.parametrize("powers", [(0, 1018), (1018, 0), (1018, 1018), (1000, -1000)])
def test_class_means_in_parts_whose_sums_would_leave_float64(powers):
    """Whole numbers times powers of two, whose sums are exact."""
    y = torch.arange(40) % 4
    numbers = torch.randint(-8, 9, (2, 40, 6), generator=torch.Generator().manual_seed(0)).double()
    parts = [of_part * 2.0**power for of_part, power in zip(numbers, powers)]
    sums = ClassSums(4, 6, y.device)
    for part in parts:
        sums.add(part, y)
    expected = torch.stack([torch.cat([part[y == k] / 16 for part in parts]).sum(0) for k in range(4)])
    assert torch.allclose(sums.means(), expected / 1.25, rtol=1e-15, atol=0)
    assert sums.counts.tolist() == [20] * 4 and sums.counts.dtype == torch.int64


def test_singular_values():
    matrix = torch.diag(torch.tensor([5.0, 3.0, 1.0])) @ torch.eye(3, 8)
    assert singular_values(matrix) == pytest.approx((1.0, 4.0))
    h, y = torch.randn(50, 20), torch.arange(50) % 5
    means = class_means(h, y, 5)
    assert singular_values(means - means.mean(0))[0] == pytest.approx(0, abs=1e-12)


H, Y, W = torch.randn(20, 6), torch.arange(20) % 4, torch.randn(4, 6)


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((H, Y + 1, W), r"labels must lie in \[0, 4\).*found 1 to 4"),
        ((H, Y - 1, W), r"labels must lie in \[0, 4\).*found -1"),
        ((H, Y.clamp(max=2), W), "class 3 of 4 has no sample"),
        ((H, Y.float(), W), "labels must be integers"),
        ((H, Y[:-1], W), r"labels must be integers \[20\]"),
        ((H, Y, W[:, :5]), r"weight must be \[K, 6\]"),
        ((H, Y, W[:1]), "K >= 2"),
        ((H, Y, W, torch.zeros(3)), r"bias must be \[4\]"),
        ((H, Y, W, torch.full((4,), float("nan"))), "bias must be finite, it holds NaN"),
        ((H, Y, W, torch.zeros(4, dtype=torch.int64)), r"bias must be floating-point \[K\]"),
        ((H.long(), Y, W), "features must be floating-point"),
        ((H[:, 0], Y, W), r"features must be floating-point \[N, p\]"),
        ((H.clone().index_fill(0, torch.tensor([3]), float("nan")), Y, W), "features hold NaN or infinity"),
        ((H.clone().index_fill(0, torch.tensor([3]), float("inf")), Y, W), "features hold NaN or infinity"),
        ((H[:0], Y[:0], W), r"labels must lie in \[0, 4\)"),
        (
            (H.to(torch.float8_e4m3fn), Y, W),
            "features must be of type float16, bfloat16, float32, float64, got",
        ),
        ((H, Y, W.to(torch.float8_e5m2)), "weight must be of type float16"),
        ((H, Y, W, torch.ones(4).to(torch.float8_e5m2)), "bias must be of type float16"),
        ((H.to_sparse(), Y, W), "features must be a dense tensor"),
        ((H, Y > 1, W), "labels must be integers"),
        ((H, Y.tolist(), W), "labels must be a tensor, got list"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        nc_metrics(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("means", "sentence"),
    [
        (torch.zeros(4, 6), r"means must be float64 \[4, 6\].*got torch.float32"),
        (torch.zeros(3, 6).double(), r"means must be float64 \[4, 6\].*\[3, 6\]"),
        (torch.full((4, 6), float("nan")).double(), "means must be finite, it holds NaN"),
        (torch.zeros(4, 6, dtype=torch.int64), "means must be floating-point"),
    ],
)
def test_means_that_are_not_class_means_are_refused(means, sentence):
    with pytest.raises(ValueError, match=sentence):
        nc_metrics(H, Y, W, means=means)
    with pytest.raises(ValueError, match=sentence):
        nc4(H, means, W)


@pytest.mark.counts("bad inputs refused")
def test_nc4_and_the_others_refuse_what_nc_metrics_refuses():
    means = class_means(H, Y, 4)
    for arguments, sentence in (
        ((H, means, W, torch.full((4,), float("nan"))), "bias must be finite"),
        ((H.to(torch.float8_e4m3fn), means, W), "features must be of type"),
        ((H * float("inf"), means, W), "features hold NaN or infinity"),
        ((H[:, :5], means, W), r"weight must be \[K, 5\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            nc4(*arguments)
    with pytest.raises(ValueError, match="features must be of type"):
        class_means(H.to(torch.float8_e4m3fn), Y, 4)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\).*found -1"):
        class_means(H, Y - 1, 4)
    with pytest.raises(ValueError, match="matrix must be finite"):
        singular_values(W * float("nan"))
    with pytest.raises(ValueError, match=r"^matrix must be floating-point \[K, p\]"):
        singular_values(W[0])


def test_class_means_by_themselves_refuse_labels_that_are_too_large():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\).*found 0 to 3"):
        class_means(H, Y, 3)


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="normalisation = 'raw' is not allowed: use 'reported' or 'formula'"):
        nc_metrics(H, Y, W, normalisation="raw")


MEMORY = """
import resource, torch
from ncutils.metrics import nc_metrics
N, p, K = {shape}
h, y, w = torch.randn(N, p), torch.arange(N) % K, torch.randn(K, p)
few = min(K, 10)
nc_metrics(h[: 4 * few], y[: 4 * few] % few, w[:few])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
nc_metrics(h, y, w)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("shape", "allowed"), [((200_000, 256, 10), 60), ((400, 12_000, 3), 60), ((16_000, 512, 4000), 100)]
)
def test_memory_beyond_the_features(shape, allowed):
    """MB on top of 205 MB of features; with p = 12,000, where a p x p matrix would take 1,150 MB; with K = 4,000, where a K x K
    matrix would take 128 MB and class means, weights and their copies take most."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(shape=shape)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < allowed


@pytest.mark.counts("bad inputs refused")
def test_features_are_checked_beside_means_that_are_given():
    h, y, w = (
        torch.randn(40, 5, generator=torch.Generator().manual_seed(0)),
        torch.arange(40) % 4,
        torch.eye(4, 5),
    )
    means = class_means(h, y, 4)
    for bad in (math.nan, math.inf):
        broken = h.clone()
        broken[7, 2] = bad
        with pytest.raises(ValueError, match="features hold NaN or infinity"):
            nc_metrics(broken, y, w, means=means)
    with pytest.raises(ValueError, match="labels: class 3 of 4 has no sample"):
        nc_metrics(h, y.clamp(max=2), w, means=means)
    for kind in (torch.uint16, torch.uint32, torch.uint64):
        assert nc_metrics(h, y.to(kind), w, means=means) == nc_metrics(h, y, w)


def by_differences(h, y, weight, bias):
    """NC4 and the share whose nearest mean is their own class's, in float64 from differences alone."""
    h, weight = h.double(), weight.double()
    means = torch.stack([h[y == k].mean(0) for k in range(len(weight))])
    nearest = torch.stack([(x - means).norm(dim=1).argmin() for x in h])
    by_weight = (h @ weight.T + bias.double()).argmax(1)
    return float((by_weight == nearest).double().mean()), float((nearest == y).double().mean())


@pytest.mark.parametrize(("k", "p"), [(4, 2), (300, 12)])
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_nc4_of_means_that_are_close_beside_their_spread(k, p, gap):
    """Pairs of classes: distances from differences, not from squares as large as the spread's, which float32 rounds."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = 5 * normal(k // 2, p)
    apart = normal(k // 2, p)
    means = torch.cat([base, base + gap * apart / apart.norm(dim=1, keepdim=True)])
    y = torch.arange(4 * k) % k
    h = (means[y] + 0.1 * gap * normal(len(y), p)).float()
    # half of the weights call the twin's class right
    weight = torch.cat([means[k // 2 :], means[: k // 2]]) if p == 2 else means
    bias = -weight.square().sum(1) / 2
    collapse = metrics.Collapse(class_means(h, y, k), weight, bias)
    collapse.add(h, y)
    found = collapse.metrics()["nc4"], float(collapse.nearest_right.sum() / len(y))
    assert found == by_differences(h, y, weight, bias)
    assert nc_metrics(h, y, weight, bias)["nc4"] == found[0]


def test_angles_of_a_row_of_zeros_are_not_known():
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        weight, h = torch.randn(4, 6, generator=generator), torch.randn(40, 6, generator=generator)
        weight[2] = 0
        assert math.isnan(nc_metrics(h, torch.arange(40) % 4, weight)["nc2wa"])


@pytest.mark.counts("bad inputs refused")
def test_tensors_without_numbers_are_refused():
    h, y, weight = torch.empty(8, 3, device="meta"), torch.arange(8) % 2, torch.randn(2, 3)
    for call in (lambda: nc_metrics(h, y, weight), lambda: class_means(h, y, 2)):
        with pytest.raises(ValueError, match="^features must hold numbers, got a tensor on device meta$"):
            call()
    with pytest.raises(ValueError, match="^matrix must hold numbers"):
        singular_values(torch.empty(2, 3, device="meta"))
