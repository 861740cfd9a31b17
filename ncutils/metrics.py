"""Neural-collapse metrics NC0 to NC4 (appendix B of the paper): pure functions of features, labels and weights.

Symbols: N samples, p feature width, K classes; features h_n [N, p], labels y_n in 0..K-1 [N], classifier W [K, p]
and bias b [K]; class means mu_k; global mean mu_G = mean of the class means; centred class means
M = (mu_k - mu_G) [p, K]; M* = (I - J/K) / sqrt(K - 1), the simplex ETF's unit Gram matrix [K, K].

Everything is accumulated in float64 over parts of the rows: beside the features no array of their size and no p x p
matrix is ever made.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

PAPERS = ("nc0", "nc1", "nc2", "nc2n", "nc2a", "nc2w", "nc2wn", "nc2wa", "nc2m", "nc3", "nc4")
GAUGE_FIXED = ("nc2wc", "nc2wnc", "nc2wac", "nc2mc", "nc3c", "gauge_share", "off_span_share", "in_span_share")
KEYS = PAPERS + GAUGE_FIXED
_CHUNK_BYTES = 2**21  # of rows: a chunk and its copies stay in the cache


def nc_metrics(
    features: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    normalisation: str = "reported",
    means: torch.Tensor | None = None,
) -> dict[str, float]:
    """All neural-collapse metrics of one evaluation.

    Arguments:
        features: last-layer features [N, p], any floating dtype, any device.
        labels: class of each sample [N], integers in [0, K); every class needs a sample.
        weight: last-layer weights W [K, p].
        bias: [K] or None; it enters NC4's decisions only.
        normalisation: "reported" is what the paper's tables and figures hold; "formula" multiplies by the factors
            that its equations print: 1/N on NC0 (Eq. 12, reading its undefined n as the number of samples),
            1/K^2 on NC2, NC2W, NC2M (Eqs. 5, 6, 9), 1/(K p) on NC3 (Eq. 10), and on their gauge-fixed forms.
        means: the result of `class_means(features, labels, K)`, if it is at hand.

    Returns a dict of floats, dimensionless except nc0, which has the unit of the weights::

        nc0   ||W^T 1||_2                                             (Eq. 12)
        nc1   tr(Sigma_W Sigma_B^+) / K                               (Eq. 2, Sigma_W centred at the class means)
        nc2   || M^T M / ||M^T M||_F - M* ||_F                        (Eq. 5)
        nc2n  std_k ||m_k|| / mean_k ||m_k||, population std          (Eq. 3)
        nc2a  mean over k != k' of |cos(m_k, m_k') + 1/(K-1)|         (Eq. 4)
        nc2w, nc2wn, nc2wa   the same three of the rows of W          (Eqs. 6, 7, 8)
        nc2m  || W M / ||W M||_F - M* ||_F                            (Eq. 9)
        nc3   || W / ||W||_F - M^T / ||M||_F ||_F                     (Eq. 10)
        nc4   share of samples whose class by W, b is the class of the nearest mean (Eq. 11, on these features; -> 1)

    and, since softmax does not see a vector that is added to all rows of W, the same with that gauge fixed, of
    W_c = (I - J/K) W, whose NC0 is 0::

        nc2wc, nc2wnc, nc2wac, nc2mc, nc3c   nc2w, nc2wn, nc2wa, nc2m, nc3 of W_c

    The squared sine of the angle between W and M^T, 1 - (1 - nc3^2 / 2)^2, is the sum of three shares of ||W||^2::

        gauge_share     ||W - W_c||^2 = nc0^2 / K
        off_span_share  the part of W_c whose rows are orthogonal to all class means
        in_span_share   the rest of W_c, but for its part along M^T

    A metric that divides by zero (all class means equal, W = 0) is nan. Sigma_B^+ uses Sigma_B's true rank, never
    rounding noise.

    Raises ValueError where shapes, labels, values or the normalisation's name are not as above.
    """
    if normalisation not in ("reported", "formula"):
        raise ValueError(f"normalisation = {normalisation!r} is not allowed: use 'reported' or 'formula'")
    _check(features, labels, weight, bias)
    n_classes, p = weight.shape
    if means is None:
        means = class_means(features, labels, n_classes)
    # all but NC0 are the same at any scale of features and weights: at about 1 no square over- or underflows
    unit, w_unit = _power_of_two(means), _power_of_two(weight)
    w, scaled_means = weight.detach().to(torch.float64) / w_unit, means / unit
    centred = scaled_means - scaled_means.mean(0)  # M^T [K, p]
    svd = _between_class_svd(centred, scaled_means.norm(), torch.promote_types(features.dtype, torch.float32))

    b = None if bias is None else bias / w_unit
    nc1, nc4 = _within_class_pass(features, labels, means, unit, w, b, svd)

    etf = (torch.eye(n_classes, dtype=w.dtype, device=w.device) - 1 / n_classes) / math.sqrt(n_classes - 1)
    w_c = w - w.mean(0)
    if w_c.norm() <= 1e-14 * w.norm():  # all rows equal
        w_c = torch.zeros_like(w)
    out = {
        "nc0": w.sum(0).norm() * w_unit,
        "nc1": nc1,
        "nc2m": (_unit(w @ centred.T) - etf).norm(),
        "nc3": (_unit(w) - _unit(centred)).norm(),
        "nc2mc": (_unit(w_c @ centred.T) - etf).norm(),
        "nc3c": (_unit(w_c) - _unit(centred)).norm(),
        "nc4": nc4,
    }
    out |= zip(("nc2", "nc2n", "nc2a"), _distance_to_etf(centred, etf))
    out |= zip(("nc2w", "nc2wn", "nc2wa"), _distance_to_etf(w, etf))
    out |= zip(("nc2wc", "nc2wnc", "nc2wac"), _distance_to_etf(w_c, etf))
    out |= zip(("gauge_share", "off_span_share", "in_span_share"), _shares(w, w_c, centred, svd))
    if normalisation == "formula":
        out["nc0"] = out["nc0"] / len(labels)
        for key in ("nc2", "nc2w", "nc2m", "nc2wc", "nc2mc"):
            out[key] = out[key] / n_classes**2
        for key in ("nc3", "nc3c"):
            out[key] = out[key] / (n_classes * p)
    return {key: float(out[key]) for key in KEYS}


def nc4(
    features: torch.Tensor, means: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> float:
    """Share of features [N, p] whose class by W [K, p], b [K] is the class of the nearest of `means` [K, p] (Eq. 11).

    With test features, the training features' class means and no bias this is the NC4 of the paper's released code.
    nan where there are no features, or all means are equal.
    """
    eps = torch.finfo(torch.promote_types(features.dtype, torch.float32)).eps
    unit = _power_of_two(means)
    means, w, agree = means / unit, weight.detach().to(torch.float64), 0
    centred = means - means.mean(0)
    if not len(features) or centred.norm() <= 4 * eps * means.norm():
        return math.nan
    b = 0 if bias is None else bias.detach().to(torch.float64) / unit
    for h in features.detach().split(_rows(features.shape[1])):
        h = h.to(torch.float64) / unit
        nearest = (centred.square().sum(1) - 2 * (h - means.mean(0)) @ centred.T).argmin(1)
        agree += int(((h @ w.T + b).argmax(1) == nearest).sum())
    return agree / len(features)


def class_means(features: torch.Tensor, labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Class means mu_k, float64 [K, p], of features [N, p] with labels [N] in 0..K-1.

    Summed in float64. The float32 features of up to 64 classes are first summed in float32, 16 rows at a time, which
    takes half the time, wherever NC1 keeps its seven digits under that: where the means are far from losing a rank.

    Raises ValueError for a label from K up, an empty class, and features that hold NaN or infinity.
    """
    features, labels = features.detach(), labels.to(torch.int64)
    counts = torch.bincount(labels, minlength=n_classes)
    if len(counts) > n_classes:
        raise ValueError(f"labels must lie in [0, {n_classes}), found {len(counts) - 1}")
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        what = f"labels: class {empty[0]} of {n_classes}"
        raise ValueError(f"{what} has no sample; every class needs at least one")
    if features.dtype == torch.float32 and n_classes <= 64 and features.is_contiguous():
        means = _sums_by_sixteen(features, labels, counts) / counts[:, None]
        if torch.isfinite(means).all():
            # Rounding moves the means by less than eps ||means|| / sqrt(n), so NC1 by about that over M's smallest.
            centred = means - means.mean(0)
            _, smallest = torch.linalg.eigvalsh(centred @ centred.T)[
                :2
            ]  # before it, 0: that of the sum of all rows
            if means.square().sum() < smallest * counts.min():
                return means
    means = _sums(features, labels, n_classes) / counts[:, None]
    if not torch.isfinite(means).all():
        raise ValueError("features hold NaN or infinity; every feature must be a finite number")
    return means


def _sums(features, labels, n_classes):
    rows, p = _rows(features.shape[1]), features.shape[1]
    sums = torch.zeros(n_classes, p, dtype=torch.float64, device=features.device)
    wide = torch.empty(min(rows, len(features)), p, dtype=torch.float64, device=features.device)
    for h, y in zip(features.split(rows), labels.split(rows)):
        sums.index_add_(0, y, wide[: len(h)].copy_(h))
    return sums


def _sums_by_sixteen(features, labels, counts):
    """Class sums whose terms are float32 sums of up to 16 features."""
    sums = torch.empty(len(counts), features.shape[1], dtype=torch.float64, device=features.device)
    # bytes sort faster, and in order memory is read forwards
    order = labels.to(torch.uint8).argsort(stable=True)
    for of_class, members in zip(sums, order.split(counts.tolist())):
        starts = torch.arange(0, len(members), 16, device=features.device)
        parts = F.embedding_bag(members, features, starts, mode="sum")
        torch.sum(parts, 0, dtype=torch.float64, out=of_class)
    return sums


def singular_values(matrix: torch.Tensor) -> tuple[float, float]:
    """Smallest singular value of W or M, and the mean of the others (Figures 6 and 16).

    `matrix` is [K, p] or [p, K] with p >= K, so that there are K of them; for centred class means the smallest is 0.
    """
    s = torch.linalg.svdvals(matrix.detach().to(torch.float64))
    return float(s[-1]), float(s[:-1].mean())


def _check(features, labels, weight, bias) -> None:
    for name, value in {"features": features, "labels": labels, "weight": weight, "bias": bias}.items():
        if not isinstance(value, torch.Tensor) and (name, value) != ("bias", None):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if any(t is not None and t.device != features.device for t in (labels, weight, bias)):
        raise ValueError("features, labels, weight and bias must be on one device")
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
        raise ValueError(
            f"features must be floating-point [N, p], got {features.dtype} {list(features.shape)}"
        )
    if weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must be [K, {features.shape[1]}] like the features, got {list(weight.shape)}"
        )
    if not weight.is_floating_point() or not torch.isfinite(weight).all():
        raise ValueError("weight must be floating-point and finite, like the features")
    n_classes = len(weight)
    if n_classes < 2:
        raise ValueError(f"weight has {n_classes} row; neural collapse needs K >= 2 classes")
    if bias is not None and bias.shape != (n_classes,):
        raise ValueError(f"bias must be [{n_classes}] like the rows of weight, got {list(bias.shape)}")
    if bias is not None and not (bias.is_floating_point() and torch.isfinite(bias).all()):
        raise ValueError("bias must be floating-point and finite, like the weight")
    if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be integers [{len(features)}], got {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= n_classes:
        found = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise ValueError(f"labels must lie in [0, {n_classes}) (K = rows of weight), found {found}")


def _rows(p: int) -> int:
    return max(64, _CHUNK_BYTES // (4 * p))


def _between_class_svd(centred, scale, dtype):
    """Thin SVD M^T = U diag(s) V^T -> (U [K, r], s [r], V^T [r, p]), cut at the true rank r.

    Features carry a relative rounding of their dtype's eps, and so do the means, of norm `scale`: singular values
    under that are noise. Half-precision features are judged as float32: their noise averages out within a class.
    """
    if dtype == torch.float64 or len(centred) <= 64:
        u, s, vt = torch.linalg.svd(centred, full_matrices=False)
    else:  # float64 eigenvalues of M^T M hold s to 1e-8 of the largest, which is enough here and ten times as fast
        squares, u = torch.linalg.eigh(centred @ centred.T)
        s, u = squares.clamp_min(0).sqrt().flip(0), u.flip(1)
        vt = u.T @ centred / s[:, None]
    rank = min(int((s > 4 * torch.finfo(dtype).eps * scale).sum()), len(centred) - 1)
    return u[:, :rank], s[:rank], vt[:rank]


def _power_of_two(values) -> float:
    """One near the largest magnitude; 1 where all are 0. Dividing by it is exact."""
    largest = float(values.detach().abs().max())
    return 2.0 ** math.frexp(largest)[1] if largest else 1.0


def _within_class_pass(features, labels, means, unit, w, bias, svd):
    """NC1 and NC4 in one pass over the features; `svd` is that of M^T / unit.

    Each feature enters as d = h - mu_y, so that a collapsed class loses no digits. With M^T = U diag(s) V^T and
    a = diag(1/s) V^T d, NC1 is the mean of ||a||^2. NC4 compares argmax_k of W h + b with argmin_k of ||h - mu_k||^2,
    which is ||m_k||^2 - 2 m_k . (h - mu_G) and a term without k, where M^T (h - mu_G) = U diag(s^2) (a + U_y).
    """
    rank = len(svd[1])
    if not rank:  # all class means equal
        return math.nan, math.nan
    dtype, (n, p) = torch.promote_types(features.dtype, torch.float32), features.shape
    factor, projection, of_means, too_much, to_means, norms = _tables(means, unit, w, bias, svd, dtype)
    mu, columns = means.to(dtype), projection.shape[1]

    spread = torch.zeros((), dtype=torch.float64, device=means.device)
    agree = torch.zeros((), dtype=torch.int64, device=means.device)
    rows = max(_rows(p), columns)  # a product with fewer rows than columns would take longer
    block = rows * max(1, min(16384, 2**22 // columns) // rows)  # at most 16 MB of products, or one part's
    deviation = torch.empty(min(rows, n), p, dtype=dtype, device=means.device)
    products = torch.empty(min(block, n), columns, dtype=dtype, device=means.device)
    for h, y in zip(features.detach().split(block), labels.to(torch.int64).split(block)):
        for h_part, y_part, out in zip(h.split(rows), y.split(rows), products.split(rows)):
            d = deviation[: len(h_part)]
            torch.index_select(mu, 0, y_part, out=d)
            torch.sub(h_part, d, out=d)
            if factor != 1:
                d *= factor
            torch.mm(d, projection, out=out[: len(h_part)])
        found = products[: len(h)]
        spread += found[:, :rank].square().sum(1).sum(dtype=torch.float64)
        found += of_means.index_select(0, y)
        nearest = (found[:, :rank] @ to_means).add_(norms).min(1).indices  # a third faster than argmin
        agree += (found[:, rank : rank + len(w)].max(1).indices == nearest).sum()
    spread -= torch.bincount(labels.to(torch.int64), minlength=len(w)).double() @ too_much
    return spread.clamp_min(0) / n, agree.double() / n


def _tables(means, unit, w, bias, svd, dtype):
    """What the pass over the features takes from the means and weights, in the features' precision.

    Returns what to multiply deviations with (1 unless their products would leave the range of the type); the projection
    [V / s, W^T], [p, r + K] and up to 3 columns of zeros; for each class's mean its own such products [K, r + K + c], the
    logits as differences to its class's; what the means' rounding adds to a class's mean ||a||^2 [K]; -2 diag(s^2) U^T
    [r, K]; and ||m_k||^2 [K].
    """
    u, s, vt = svd
    squared_norms = (u * s).square().sum(1)
    factor = 1.0 if abs(math.log2(unit)) < (400 if dtype == torch.float64 else 40) else 1 / unit
    # a multiple of 4 columns multiplies faster
    empty = means.new_zeros(-(len(s) + len(w)) % 4, means.shape[1])
    projection = torch.cat([vt / (s * unit * factor)[:, None], w, empty]).T
    logits = factor * (means @ w.T + (0 if bias is None else bias.detach().double()))
    of_means = torch.cat([u, logits - logits.diagonal()[:, None], means.new_zeros(len(w), len(empty))], dim=1)
    # deviations are taken from rounded means
    rounding = factor * (means - means.to(dtype).double()) @ projection
    of_means -= rounding
    too_much = rounding[:, : len(s)].square().sum(1)
    tables = (table.to(dtype) for table in (projection, of_means))
    return factor, *tables, too_much, (-2 * u * s**2).T.to(dtype), squared_norms.to(dtype)


def _shares(w, w_c, centred, svd):
    """gauge_share, off_span_share, in_span_share of W [K, p], W_c and M^T [K, p] with its thin SVD."""
    _, s, vt = svd
    if not len(s):
        return (w - w_c).square().sum() / w.square().sum(), math.nan, math.nan
    if s[-1] < 1e-4 * s[0]:  # rows that were had by division by s are orthogonal to 1e-16 (s_1 / s)^2 only
        vt = torch.linalg.qr(vt.T).Q.T
    inside, m = w_c @ vt.T, centred @ vt.T
    off_span = w_c - inside @ vt
    in_span = inside - m * ((inside * m).sum() / m.square().sum())
    return tuple(part.square().sum() / w.square().sum() for part in (w - w_c, off_span, in_span))


def _distance_to_etf(rows, etf):
    """NC2, NC2n, NC2a of K vectors, the rows [K, p]."""
    norms = rows.norm(dim=1)
    unit = rows / norms[:, None]
    k = len(rows)
    off_diagonal = ~torch.eye(k, dtype=torch.bool, device=rows.device)
    equiangular = (unit @ unit.T + 1 / (k - 1)).abs()[off_diagonal].mean()
    return (_unit(rows @ rows.T) - etf).norm(), norms.std(correction=0) / norms.mean(), equiangular


def _unit(matrix):
    return matrix / matrix.norm()
