"""All metrics of many classes against the usual way, on features that have collapsed and on some that have not.

Usual: three passes over batches of 4,096 in float32 (class sums by a product with one-hot labels; the p x p within-class
covariance; all logits and all distances to class means for NC4), then the p x p between-class covariance's pseudo-inverse.
Where NCUTILS_PEER names a checkout of rhubarbwu/neural-collapse, the library that the paper used, its own accumulators, too.
"""

import functools
import os
import sys

import torch
from common import TOY, main, paired, profile, row

from ncutils.metrics import nc_metrics


def usual(features, labels, weight):
    k, p = weight.shape
    batches = list(zip(features.split(4096), labels.split(4096)))
    sums, counts, within, agree = torch.zeros(k, p), torch.zeros(k), torch.zeros(p, p), 0
    for h, y in batches:
        one_hot = (y == torch.arange(k)[:, None]).float()
        sums += one_hot @ h
        counts += one_hot.sum(1)
    means = sums / counts[:, None]
    for h, y in batches:
        d = h - means[y]
        within += d.T @ d
    for h, _ in batches:
        distances = h.square().sum(1, keepdim=True) + means.square().sum(1) - 2 * h @ means.T
        agree += ((h @ weight.T).argmax(1) == distances.argmin(1)).sum()
    m = means - means.mean(0)
    grams, etf = (m @ m.T, weight @ weight.T, weight @ m.T), (torch.eye(k) - 1 / k) / (k - 1) ** 0.5
    to_etf = [float((gram / gram.norm() - etf).norm()) for gram in grams]
    nc1 = float((within / len(labels) @ torch.linalg.pinv(m.T @ m / k)).trace() / k)
    return {"nc1": nc1, **dict(zip(("nc2", "nc2w", "nc2m"), to_etf)), "nc4": float(agree / len(labels))}


def peers(features, labels, weight):
    """The library that the paper used, in the same batches: its accumulators of means, covariance and decisions."""
    from neural_collapse import accumulate, measure

    batches, shape = list(zip(features.split(4096), labels.split(4096))), weight.shape
    of_means = accumulate.MeanAccumulator(*shape)
    for h, y in batches:
        of_means.accumulate(h, y)
    means, centre = of_means.compute()
    within = accumulate.CovarAccumulator(*shape, M=means)
    decisions = accumulate.DecAccumulator(*shape, M=means, W=weight)
    for h, y in batches:
        within.accumulate(h, y, means)
        decisions.accumulate(h, y, weight, means)
    return {
        "nc1": measure.covariance_ratio(within.compute(), means, centre),
        "nc2": measure.simplex_etf_error(means, centre),
        "nc2w": measure.structure_error(weight, weight),
        "nc2m": measure.self_duality_error(weight, means, centre),
        "nc4": measure.clf_ncc_agreement(decisions),
    }


def problem(n, p, k, collapsed):
    """Features like those after a ReLU, in place; collapsed ones come with the weights that belong to their means."""
    generator = torch.Generator().manual_seed(0)
    labels, means = torch.arange(n) % k, torch.randn(k, p, generator=generator)
    features = torch.randn(n, p, generator=generator).mul_(0.1 if collapsed else 3)
    for h, y in zip(features.split(1024), labels.split(1024)):
        h.add_(means[y]).relu_()
    aligned = means.relu() - means.relu().mean(0)
    return features, labels, aligned if collapsed else torch.randn(k, p, generator=generator)


def rows():
    usuals = {"three passes, batches of 4,096": usual}
    if folder := os.environ.get("NCUTILS_PEER"):
        sys.path.insert(0, folder)
        usuals["the paper's library, batches of 4,096"] = peers
    sizes = ((600, 32, 260), (900, 300, 260)) if TOY else ((50_000, 2048, 1000), (40_000, 512, 4000))
    for n, p, k in sizes:
        for collapsed in (True, False):
            given = problem(n, p, k, collapsed)
            for against, other in usuals.items():
                if other is peers and k > p:
                    continue  # minutes
                ours, theirs = functools.partial(nc_metrics, *given), functools.partial(other, *given)
                got, expected = ours(), theirs()
                for name in ("nc2", "nc2w", "nc2m", "nc4"):
                    assert abs(got[name] - expected[name]) < 1e-3, (name, got[name], expected[name])
                here, there, ratio = paired(ours, theirs, warm_up=False)
                yield row(
                    f"all metrics, N = {n:,}, p = {p:,}, K = {k:,}, {'' if collapsed else 'not '}collapsed",
                    ratio,
                    4 if collapsed and k < p else None,
                    unit=" x",
                    against=against,
                    usual=there,
                    ours=here,
                    why=profile(ours),
                )


if __name__ == "__main__":
    main(rows)
