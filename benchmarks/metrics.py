"""All metrics of one evaluation at N = 60,000, p = 512, K = 10, against the usual way.

Usual: three passes over batches of 128 (class means; p x p within-class covariance; nearest-class-mean agreement), then
the pseudo-inverse of the p x p between-class covariance, all in float32.
"""

import torch
from common import machine, paired

from ncutils.metrics import nc_metrics

N, P, K, PAIRS = 60_000, 512, 10, 7


def usual(features, labels, weight):
    batches = list(zip(features.split(128), labels.split(128)))
    means, counts = torch.zeros(K, P), torch.zeros(K)
    for h, y in batches:
        for k in range(K):
            means[k] += h[y == k].sum(0)
            counts[k] += (y == k).sum()
    means /= counts[:, None]
    within = torch.zeros(P, P)
    for h, y in batches:
        d = h - means[y]
        within += d.T @ d
    agree = 0
    for h, y in batches:
        agree += ((h @ weight.T).argmax(1) == torch.cdist(h, means).argmin(1)).sum()
    m = means - means.mean(0)
    between = m.T @ m / K
    etf = (torch.eye(K) - 1 / K) / (K - 1) ** 0.5
    gram, gram_w, product = m @ m.T, weight @ weight.T, weight @ m.T
    return {
        "nc0": weight.sum(0).norm(),
        "nc1": (within / len(labels) @ torch.linalg.pinv(between, hermitian=True, rtol=1e-5)).trace() / K,
        "nc2": (gram / gram.norm() - etf).norm(),
        "nc2w": (gram_w / gram_w.norm() - etf).norm(),
        "nc2m": (product / product.norm() - etf).norm(),
        "nc3": (weight / weight.norm() - m / m.norm()).norm(),
        "nc4": agree / len(labels),
    }


def nc1_in_float64(features, labels):
    h = features.double()
    means = torch.stack([h[labels == k].mean(0) for k in range(K)])
    m, d = means - means.mean(0), h - means[labels]
    return float((d.T @ d / len(h) @ torch.linalg.pinv(m.T @ m / K, hermitian=True, rtol=1e-10)).trace() / K)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (N,), generator=generator)
    features = torch.randn(K, P, generator=generator)[labels] + 0.3 * torch.randn(N, P, generator=generator)
    features.relu_()
    weight = torch.randn(K, P, generator=generator)
    ours, theirs, ratio = paired(
        lambda: nc_metrics(features, labels, weight), lambda: usual(features, labels, weight), PAIRS
    )
    exact, got = nc1_in_float64(features, labels), nc_metrics(features, labels, weight)["nc1"]
    print(f"metrics, N = {N:,}, p = {P}, K = {K} ({machine()}; median of {PAIRS} pairs)")
    print(f"  usual way {theirs * 1e3:.0f} ms, nc_metrics {ours * 1e3:.0f} ms: {ratio:.1f} times faster")
    print(f"  NC1 {got:.6g}, relative error against float64 {abs(got / exact - 1):.1e}")
