"""All metrics of one evaluation against the usual way, and against the time to read the features.

Usual: three passes over batches of 128 (class means; p x p within-class covariance; nearest-class-mean agreement), then
the pseudo-inverse of the p x p between-class covariance, all in float32. Any way must read the features twice, for the
deviations from the class means: that is the time of two sums of all features.
"""

import resource

import torch
from common import TOY, main, paired, profile, row

from ncutils.metrics import nc_metrics


def usual(features, labels, weight):
    k, p = weight.shape
    batches = list(zip(features.split(128), labels.split(128)))
    means, counts = torch.zeros(k, p), torch.zeros(k)
    for h, y in batches:
        for c in range(k):
            means[c] += h[y == c].sum(0)
            counts[c] += (y == c).sum()
    means /= counts[:, None]
    within = torch.zeros(p, p)
    for h, y in batches:
        d = h - means[y]
        within += d.T @ d
    agree = 0
    for h, _ in batches:
        agree += ((h @ weight.T).argmax(1) == torch.cdist(h, means).argmin(1)).sum()
    m = means - means.mean(0)
    between = m.T @ m / k
    etf = (torch.eye(k) - 1 / k) / (k - 1) ** 0.5
    gram, gram_w, product = m @ m.T, weight @ weight.T, weight @ m.T
    return {
        "nc0": weight.sum(0).norm(),
        "nc1": (within / len(labels) @ torch.linalg.pinv(between, hermitian=True, rtol=1e-5)).trace() / k,
        "nc2": (gram / gram.norm() - etf).norm(),
        "nc2w": (gram_w / gram_w.norm() - etf).norm(),
        "nc2m": (product / product.norm() - etf).norm(),
        "nc3": (weight / weight.norm() - m / m.norm()).norm(),
        "nc4": agree / len(labels),
    }


def problem(n, p, k):
    """Features like those after a ReLU, made in place: they are the only large array."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % k
    features = torch.randn(n, p, generator=generator).mul_(0.3)
    means = torch.randn(k, p, generator=generator)
    for h, y in zip(features.split(1024), labels.split(1024)):
        h.add_(means[y]).relu_()
    return features, labels, torch.randn(k, p, generator=generator)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def of_size(n, p, k):
    features, labels, weight = problem(n, p, k)

    def ours():
        return nc_metrics(features, labels, weight)

    size, before = f"all metrics, N = {n:,}, p = {p:,}, K = {k:,}", peak()
    got = ours()
    memory = peak() - before
    assert abs(got["nc1"] / float(usual(features, labels, weight)["nc1"]) - 1) < 1e-2
    here, theirs, ratio = paired(ours, lambda: usual(features, labels, weight), warm_up=False)
    yield row(
        size, ratio, 10, unit=" x", against="three passes, p x p", usual=theirs, ours=here, why=profile(ours)
    )
    here, reading, share = paired(ours, lambda: (features.sum(), features.sum()))
    least, reading, least_share = paired(arithmetic(features, k), lambda: (features.sum(), features.sum()))
    goal = 2.5 if k <= 10 else None
    yield row(f"{size}: over the floor", 1 / share, goal, at_most=True, unit=" x", against="features read twice",
              usual=reading, ours=here, why=f"its arithmetic by itself: {1 / least_share:.3g} x")  # fmt: skip
    if k > 10:
        yield row(f"{size}: memory beside the features", memory, 200, at_most=True, unit=" MB")
    yield row(f"{size}: over its arithmetic", here / least, at_most=True, unit=" x",
              against="the features read once, and the matrix products", usual=least, ours=here)  # fmt: skip


def arithmetic(features, k):
    """What no way around it is known for, by itself: all features read once for the class sums; then their products with
    V and W [p, 2 K], and V's share of these with M^T V [K, K], in the chunks that are fastest here, the results not kept.
    """
    rows, p = max(512, 2 * k), features.shape[1]
    products, distances = torch.empty(rows, 2 * k), torch.empty(rows, k)
    matrix, square = torch.randn(p, 2 * k), torch.randn(k, k)

    def call():
        features.sum()
        for h in features.split(rows):
            torch.mm(h, matrix, out=products[: len(h)])
            torch.mm(products[: len(h), :k], square, out=distances[: len(h)])

    return call


def rows():
    for size in ((2000, 32, 5), (3000, 64, 80)) if TOY else ((60_000, 512, 10), (100_000, 2048, 1000)):
        yield from of_size(*size)


if __name__ == "__main__":
    main(rows)
