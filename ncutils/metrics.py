"""Neural-collapse metrics NC0 to NC4 (appendix B of the paper): pure functions of features, labels and weights.

Symbols: N samples, p feature width, K classes; features h_n [N, p], labels y_n in 0..K-1 [N], classifier W [K, p]
and bias b [K]; class means mu_k; global mean mu_G = mean of the class means; centred class means
M = (mu_k - mu_G) [p, K]; M* = (I - J/K) / sqrt(K - 1), the simplex ETF's unit Gram matrix [K, K].

Everything is accumulated in float64 over parts of the rows: beside the features no array of their size, and no p x p or
K x K matrix larger than K x p, is ever made.
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers

import torch
import torch.nn.functional as F

PAPERS = ("nc0", "nc1", "nc2", "nc2n", "nc2a", "nc2w", "nc2wn", "nc2wa", "nc2m", "nc3", "nc4")
GAUGE_FIXED = ("nc2wc", "nc2wnc", "nc2wac", "nc2mc", "nc3c", "gauge_share", "off_span_share", "in_span_share")
KEYS = PAPERS + GAUGE_FIXED
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK_BYTES = 2**21  # of rows: a chunk and its copies stay in the cache
_BLOCK = 2**18  # entries of a K x K matrix that are made at a time
_MANY = 256  # classes from which it pays to look first which samples need no product with all of them


@contextlib.contextmanager
def full_precision(device: torch.device):
    """Products of float32 matrices in float32, without a gradient, whatever autocast and torch's settings say.

    `torch.set_float32_matmul_precision("medium")` makes them bfloat16, on some CPUs too.
    """
    products = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [settings.fp32_precision for settings in products]
    try:
        for settings in products:
            settings.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for settings, value in zip(products, before):
            settings.fp32_precision = value


def _in_full_precision(function):
    @functools.wraps(function)
    def call(features, *args, **kwargs):
        here = isinstance(features, torch.Tensor) and features.device.type != "meta"
        with full_precision(features.device if here else torch.device("cpu")):
            return function(features, *args, **kwargs)

    return call


@_in_full_precision
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
        features: last-layer features [N, p], float16 to float64, any device.
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
        off_span_share  the part of W_c whose rows are orthogonal to all centred class means
        in_span_share   the rest of W_c, but for its part along M^T

    A metric that divides by zero (all class means equal, W = 0) is nan. Sigma_B^+ uses Sigma_B's true rank, never
    rounding noise. The scale of the features changes nothing but NC4's decisions where there is a bias.

    Raises ValueError where shapes, types, labels, values or the normalisation's name are not as above.
    """
    _check("features", features, 2)
    _check_classifier(weight, bias, features)
    _check_labels(labels, features, len(weight))
    if means is None:
        # float64 means near 1e-308 would have fewer digits
        if features.dtype == torch.float64 and _exponent(features) < -900:
            features, bias = ldexp(features, 600), None if bias is None else ldexp(bias, 600)
        means = class_means(features, labels, len(weight))
    else:
        _check_means(means, weight)
        _check_counts(torch.bincount(labels.to(torch.int64), minlength=len(weight)))
    collapse = Collapse(means, weight, bias, features.dtype)
    collapse.add(features, labels)
    found = collapse.metrics(normalisation)
    if not math.isfinite(found["nc1"]):  # by the features, or by means that are all equal
        for h in features.detach().split(_rows(features.shape[1])):
            if not torch.isfinite(h).all():
                raise ValueError("features hold NaN or infinity; every feature must be a finite number")
    return found


@_in_full_precision
def nc4(
    features: torch.Tensor, means: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> float:
    """Share of features [N, p] whose class by W [K, p], b [K] is the class of the nearest of `means` [K, p] (Eq. 11).

    With test features, the training features' class means (float64) and no bias this is the NC4 of the paper's released
    code. nan where there are no features, or all means are equal.

    Raises ValueError where shapes, types or values are not as above.
    """
    _check("features", features, 2)
    _check_classifier(weight, bias, features)
    _check_means(means, weight)
    exponent, agree = _exponent(means), 0
    (w, b, f), means = _logits(weight, bias, exponent), ldexp(means, -exponent)
    centred = means - means.mean(0)
    if not len(features) or centred.norm() <= _noise(features.dtype) * means.norm():
        return math.nan
    for h in features.detach().split(_rows(features.shape[1])):
        h = ldexp(h, -exponent)
        if not torch.isfinite(h).all():
            raise ValueError("features hold NaN or infinity; every feature must be a finite number")
        nearest = (centred.square().sum(1) - 2 * (h - means.mean(0)) @ centred.T).argmin(1)
        agree += int(((ldexp(h @ w.T, -f) + b).argmax(1) == nearest).sum())
    return agree / len(features)


@_in_full_precision
def class_means(features: torch.Tensor, labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Class means mu_k, float64 [K, p], of features [N, p] with labels [N] in 0..K-1.

    Summed in float64. The float32 features of up to 64 classes are first summed in float32, 16 rows at a time, which
    takes half the time, wherever NC1 keeps its seven digits under that: where the means are far from losing a rank.

    Raises ValueError for a K that is no whole number, a label outside [0, K), an empty class, and features that hold NaN or
    infinity.
    """
    _check("features", features, 2)
    _check_labels(labels, features, n_classes)
    features, labels = features.detach(), labels.to(torch.int64)
    counts = torch.bincount(labels, minlength=n_classes)
    _check_counts(counts)
    if features.dtype == torch.float32 and n_classes <= 64 and features.is_contiguous():
        means = _sums_by_sixteen(features, labels, counts) / counts[:, None]
        if torch.isfinite(means).all():
            # Rounding moves the means by less than eps ||means|| / sqrt(n), so NC1 by about that over M's smallest.
            centred = means - means.mean(0)
            gram = torch.linalg.eigvalsh(centred @ centred.T)
            smallest = gram[:2][-1]  # the first is that of the sum of all rows, 0
            if means.square().sum() < smallest * counts.min():
                return means
    sums = ClassSums(n_classes, features.shape[1], features.device)
    sums.add(features, labels)
    return sums.means()


class ClassSums:
    """Class means of features that come in parts, summed in float64: `add` each part, then ask for the `means`.

    Arguments: K, p and the device of the sums.
    """

    def __init__(self, n_classes: int, p: int, device: torch.device):
        self.sums = torch.zeros(n_classes, p, dtype=torch.float64, device=device)
        self.counts = torch.zeros(n_classes, dtype=torch.int64, device=device)
        self.exponent = 0  # the sums are kept over 2^exponent

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Features [n, p] with labels [n] in 0..K-1."""
        features, labels = features.detach(), labels.to(torch.int64)
        may_leave = features.dtype == torch.float64 and len(features) and not self.exponent
        if may_leave and features.abs().max() > 2.0**900:  # their sums could leave the range of float64
            self.exponent = 64
            self.sums *= 2.0**-64
        rows = _rows(features.shape[1])
        wide = self.sums.new_empty(min(rows, len(features)), features.shape[1])
        for h, y in zip(features.split(rows), labels.split(rows)):
            h = wide[: len(h)].copy_(h)
            self.sums.index_add_(0, y, h * 2.0**-self.exponent if self.exponent else h)
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def means(self) -> torch.Tensor:
        """Class means, float64 [K, p]. Raises ValueError for an empty class, and where features held NaN or infinity."""
        _check_counts(self.counts)
        means = (self.sums / self.counts[:, None]).mul_(2.0**self.exponent)
        if not torch.isfinite(means).all():
            raise ValueError("features hold NaN or infinity; every feature must be a finite number")
        return means


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
    Raises ValueError where it is no such matrix of finite numbers.
    """
    _check("matrix", matrix, 2)
    if not len(matrix):
        raise ValueError(f"matrix must have a row or more, got {list(matrix.shape)}")
    _check_finite("matrix", matrix)
    exponent = _exponent(matrix)
    s = torch.linalg.svdvals(ldexp(matrix.detach(), -exponent)) * 2.0**exponent
    return float(s[-1]), float(s[:-1].mean())


def _check(name: str, value, ndim: int) -> None:
    shape = {1: "[K]", 2: "[N, p]" if name == "features" else "[K, p]"}[ndim]
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    # the others must be where the features are
    if value.device.type == "meta" and name in ("features", "matrix"):
        raise ValueError(f"{name} must hold numbers, got a tensor on device meta")
    if value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"{name} must be a dense tensor, got layout {value.layout}")
    if value.ndim != ndim or not value.is_floating_point() or 0 in value.shape[1:]:
        raise ValueError(f"{name} must be floating-point {shape}, got {value.dtype} {list(value.shape)}")
    if value.dtype not in FLOATS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"{name} must be of type {known}, got {value.dtype}: convert it first")


def _check_finite(name: str, value) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, it holds NaN or infinity")


def _check_classifier(weight, bias, features) -> None:
    _check("weight", weight, 2)
    if bias is not None:
        _check("bias", bias, 1)
    if any(t is not None and t.device != features.device for t in (weight, bias)):
        raise ValueError("features, labels, weight and bias must be on one device")
    if weight.shape[1] != features.shape[1]:
        raise ValueError(f"weight must be [K, {features.shape[1]}] like the features, got {[*weight.shape]}")
    if len(weight) < 2:
        raise ValueError(f"weight has {len(weight)} row; neural collapse needs K >= 2 classes")
    _check_finite("weight", weight)
    if bias is not None:
        _check_finite("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{len(weight)}] like the rows of weight, got {list(bias.shape)}")


def _check_means(means, weight) -> None:
    _check("means", means, 2)
    if means.dtype != torch.float64 or means.shape != weight.shape or means.device != weight.device:
        raise ValueError(
            f"means must be float64 {list(weight.shape)} on the device of the weight, as class_means gives them, "
            f"got {means.dtype} {list(means.shape)} on {means.device}"
        )
    _check_finite("means", means)


def _check_labels(labels, features, n_classes: int) -> None:
    if not isinstance(n_classes, numbers.Integral) or n_classes < 1:
        raise ValueError(
            f"n_classes = {n_classes!r} is not allowed: it must be a whole number of classes, 1 or more"
        )
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"labels must be a tensor, got {type(labels).__name__}")
    kind = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    if labels.shape != features.shape[:1] or kind:
        raise ValueError(f"labels must be integers [{len(features)}], got {labels.dtype} {[*labels.shape]}")
    if labels.device != features.device:
        raise ValueError("features, labels, weight and bias must be on one device")
    labels = labels.to(torch.int64)
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= n_classes:
        found = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise ValueError(f"labels must lie in [0, {n_classes}), for K = {n_classes} classes, found {found}")


def _check_counts(counts) -> None:
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        what = f"labels: class {empty[0]} of {len(counts)}"
        raise ValueError(f"{what} has no sample; every class needs at least one")


def _rows(p: int) -> int:
    return max(64, _CHUNK_BYTES // (4 * p))


def _exponent(values) -> int:
    """An e with which values / 2^e have their largest magnitude near 1, at most 1000 either way; 0 where all are 0."""
    largest = max(abs(float(value)) for value in values.detach().aminmax())
    return min(max(math.frexp(largest)[1], -1000), 1000)


def ldexp(values, exponent: int, out=None):
    """The values times 2^exponent in float64, a copy or in `out`, exact but for what leaves the range of float64."""
    out = values.to(torch.float64, copy=True) if out is None else out
    exponent = min(max(exponent, -2000), 2000)
    return out.mul_(2.0 ** (exponent // 2)).mul_(2.0 ** (exponent - exponent // 2)) if exponent else out


def _logits(weight, bias, exponent: int):
    """W / 2^e [K, p] and b [K] in float64, and f, so that (W / 2^e) (h / 2^exponent) / 2^f + b is the logits of features h
    but for a factor, and at most about 1 for h at about 2^exponent, whatever the scales of h, W and b."""
    w_exponent = _exponent(weight)
    w = ldexp(weight.detach(), -w_exponent)
    if bias is None or not bias.any():
        return w, w.new_zeros(len(w)), 0
    f = max(0, _exponent(bias) - exponent - w_exponent)  # where the bias dwarfs W h
    return w, ldexp(bias.detach(), -exponent - w_exponent - f), f


class Collapse:
    """NC0 to NC4 of features that come in parts: class means and classifier first, then `add` for each part, then
    `metrics`. `nc_metrics` is the same of features that are at hand.

    Arguments:
        means: class means, float64 [K, p] (`class_means`, `ClassSums`).
        weight, bias: W [K, p] and b [K] or None.
        dtype: that of the features to come; half precision is worked with in float32.
        variances: whether to add up the classes' own variances, too, which costs another pass.

    What `add` sums: `counts` [K], samples; `agree` [K], those whose class by W is the class of the nearest mean;
    `nearest_right` [K], those whose nearest mean is that of their own class; `spread` [r], for each singular value s of
    M / 2^exponent (`singular`) the sum of squares of v^T (h - mu_y) / s, so that NC1 is its sum over N; `squares` [K],
    with `variances`, the sum of ||h - mu_y||^2 / 4^exponent.
    """

    def __init__(self, means, weight, bias=None, dtype=torch.float32, variances: bool = False):
        self.means, self.exponent = means, _exponent(means)
        self.dtype = torch.promote_types(dtype, torch.float32)
        # all but NC0 are the same at any scale of features and weights: at about 1 no square over- or underflows
        w, b, f = _logits(weight, bias, self.exponent)
        w_mean, size, nc0 = w.mean(0), w.norm(), w.sum(0).norm() * 2.0 ** _exponent(weight)
        self.many = len(w) >= _MANY
        w_c = w.sub_(w_mean) if self.many else w - w_mean
        if w_c.norm() <= 1e-14 * size:  # all rows equal
            w_c.zero_()
        centred = ldexp(means, -self.exponent)
        global_mean, scale = centred.mean(0), centred.norm()
        centred.sub_(global_mean)  # M^T [K, p]
        gram, u, s, vt = _between_class_svd(centred, scale, self.dtype)
        if not len(s):  # all class means equal, but for rounding
            centred, gram = centred.zero_(), None
        self.singular, self.many = s, self.many and len(s) > 0
        at_global_mean = b + ldexp(w_c @ global_mean, -f)
        self.geometry, radii = _geometry(centred, gram, w_c, w_mean, (u, s, vt), at_global_mean, f, self.many)
        self.geometry["nc0"] = nc0
        del centred, gram
        self.counts, self.agree, self.nearest_right = s.new_zeros(3, len(w), dtype=torch.int64)
        self.spread = s.new_zeros(len(s))
        self.squares = s.new_zeros(len(w)) if variances else None

        # features come as they are, or over 2^exponent where their products would leave the range of the type
        extreme = abs(self.exponent) >= (400 if self.dtype == torch.float64 else 40)
        self.shift, inner = (self.exponent, 0) if extreme else (0, self.exponent)
        to_a = ldexp(vt.div_(s[:, None]), -inner, out=vt)
        rows = torch.arange(len(w), device=w.device).split(_rows(w.shape[1]))
        mu = means if not self.shift else ldexp(means, -self.shift)
        self.mu = mu.to(self.dtype, copy=True)
        # deviations are taken from rounded means
        rounded = torch.cat([(mu[i] - self.mu[i]).to(self.dtype) for i in rows])
        del mu
        self.points = u * s  # M^T in the basis V
        if self.many:
            near, clear, self.top, squares = radii
            self.near, self.clear = (ldexp(r, inner) - rounded.norm(dim=1) for r in (near, clear))
            to_a = to_a.T.to(self.dtype)
            self.rounding, u = rounded @ to_a, u.to(self.dtype)
            # a multiple of 16 columns multiplies faster
            self.projection = F.pad(to_a, (0, -len(s) % 16))
            del rounded, to_a
            self.of_means = u - self.rounding
            self.to_means, self.norms = u.mul_(-2 * s.to(self.dtype) ** 2).T, squares.to(self.dtype)
            self.exact = ldexp(w_c, -inner - f, out=w_c), ldexp(global_mean, inner)
            self.weight, self.global_mean = (x.to(self.dtype) for x in self.exact)
            self.at_global_mean = b + w_c @ self.exact[1]
            # per unit of ||d|| and beside it: what rounding may add to a compared value
            noise, largest = 16 * torch.finfo(self.dtype).eps, float(squares.max().sqrt())
            self.of_nearest = noise * largest * 2.0**-inner, 2 * noise * largest**2
            self.of_weight = (
                noise * float(w_c.norm(dim=1).max()),
                noise * float(self.at_global_mean.abs().max()),
            )
            self.tried = self.settled = 0
        else:
            # a multiple of 4 columns multiplies faster
            empty = w.new_zeros(-(len(s) + len(w)) % 4, w.shape[1])
            projection = torch.cat([to_a, ldexp(w, -inner - f), empty]).T
            logits = ldexp(means, -self.exponent) @ ldexp(w, -f).T + b
            of_means = torch.cat(
                [torch.zeros_like(u), logits - logits.diagonal()[:, None], w.new_zeros(len(w), len(empty))], 1
            )
            rounding = rounded.double() @ projection
            self.rounding, self.projection = rounding[:, : len(s)].to(self.dtype), projection.to(self.dtype)
            self.of_means = (of_means - rounding).to(self.dtype)
            self.to_means = (-2 * u * s**2).T.to(self.dtype)
            self.apart = self._apart(torch.arange(len(w), device=w.device))

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Features [n, p] with labels [n] in 0..K-1.

        Each feature enters as d = h - mu_y, so that a collapsed class loses no digits. With M^T = U diag(s) V^T and
        a = diag(1/s) V^T d, NC1 is the mean of ||a||^2. NC4 compares argmax_k of W h + b with argmin_k of ||h - mu_k||^2,
        which is ||m_k||^2 - 2 m_k . (h - mu_G) and a term without k, where M^T (h - mu_G) = U diag(s^2) (a + U_y).
        """
        features, labels = features.detach(), labels.to(torch.int64)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        rank, (n, p) = len(self.singular), features.shape
        if not rank:  # all class means equal
            return
        columns = self.projection.shape[1]
        rows = max(_rows(p), columns)  # a product with fewer rows than columns would take longer
        # at most 16 MB of products, or one part's
        block = rows if self.many else rows * max(1, min(16384, 2**22 // columns) // rows)
        deviation = torch.empty(min(rows, n), p, dtype=self.dtype, device=features.device)
        products = torch.empty(min(block, n), columns, dtype=self.dtype, device=features.device)
        for h, y in zip(features.split(block), labels.split(block)):
            for h_part, y_part, out in zip(h.split(rows), y.split(rows), products.split(rows)):
                d, out = deviation[: len(h_part)], out[: len(h_part)]
                torch.index_select(self.mu, 0, y_part, out=d)
                if self.shift:
                    h_part = ldexp(h_part, -self.shift).to(self.dtype)
                torch.sub(h_part, d, out=d)
                torch.mm(d, self.projection, out=out)
                if self.many:
                    out = out[:, :rank]
                    self._compare_where_open(h_part, y_part, d, out)
                    self.spread += out.square_().sum(0)
                if self.squares is not None:
                    of_class = d.square().sum(1).double() * 4.0 ** (self.shift - self.exponent)
                    self.squares.index_add_(0, y_part, of_class)
            if not self.many:
                found = products[: len(h)]
                self.spread += found[:, :rank].square().sum(0)
                found += self.of_means.index_select(0, y)
                # a third faster than argmax
                by_weight = found[:, rank : rank + len(self.counts)].max(1).indices
                self._count(y, by_weight, self._nearest(found[:, :rank], self.apart.index_select(0, y)))

    def _apart(self, classes):
        """||mu_k - mu_y||^2 of these classes y [n] and all k, [n, K]."""
        squares = self.points.square().sum(1)
        between = squares[classes, None] + squares - 2 * self.points[classes] @ self.points.T
        return between.clamp_min_(0).to(self.dtype)

    def _nearest(self, a, apart):
        """The class of the nearest mean [n], from a [n, r] and ||mu_k - mu_y||^2 [n, K].

        ||h - mu_k||^2 - ||h - mu_y||^2 is that less 2 (m_k - m_y) . (h - mu_y): two means may be as close as they like.
        """
        return torch.addmm(apart, a, self.to_means).min(1).indices

    def _count(self, y, by_weight, nearest):
        self.agree += torch.bincount(y[by_weight == nearest], minlength=len(self.counts))
        self.nearest_right += torch.bincount(y[nearest == y], minlength=len(self.counts))

    def _compare_where_open(self, h, y, d, a):
        """Counts, for features h [n, p] of many classes with d and a, without all products where the answer is known.

        The nearest mean is mu_y wherever ||d|| is under half the distance of mu_y to the next one, and the class by W is
        y wherever mu_y is on y's side of W's boundaries by more than ||d||. Elsewhere the class that W gives mu_y itself
        often beats that of the nearest mean, which settles that the two differ. What rounding leaves open is computed in float64.
        """
        distance = torch.linalg.vector_norm(d, dim=1)
        near, clear = distance < self.near[y], distance < self.clear[y]
        nearest = y
        pieces = max(64, 2**21 // len(self.counts))  # 8 MB of products
        if not near.all():
            nearest = y.clone()
            for i in (~near).nonzero().flatten().split(pieces):
                found = ((a[i] + self.of_means[y[i]]) @ self.to_means).add_(self.norms).neg_()
                nearest[i], open_ = _largest(found, _linear(self.of_nearest, distance[i]))
                j = i[open_]
                nearest[j] = self._nearest(a[j] - self.rounding[y[j]], self._apart(y[j]))
        by_weight = torch.where(clear, y, -1)
        i = (~clear).nonzero().flatten()
        if len(i) and 2 * self.settled >= self.tried:
            i = i[self.top[y[i]] != nearest[i]]
            margin = self.weight[self.top[y[i]]].sub_(self.weight[nearest[i]])
            centred = h[i] - self.global_mean
            margin = margin.mul_(centred).sum(1)
            margin += (self.at_global_mean[self.top[y[i]]] - self.at_global_mean[nearest[i]]).to(self.dtype)
            settled = margin > 2 * _linear(self.of_weight, centred.norm(dim=1))
            by_weight[i[settled]] = -2
            self.tried += len(i)
            self.settled += int(settled.sum())
        for i in (by_weight == -1).nonzero().flatten().split(pieces):
            centred = h[i] - self.global_mean
            found = (centred @ self.weight.T).add_(self.at_global_mean.to(self.dtype))
            by_weight[i], open_ = _largest(found, _linear(self.of_weight, centred.norm(dim=1)))
            j = i[open_]
            weight, global_mean = self.exact
            logits = (h[j].double() - global_mean) @ weight.T + self.at_global_mean
            by_weight[j] = logits.max(1).indices
        self._count(y, by_weight, nearest)

    def metrics(self, normalisation: str = "reported") -> dict[str, float]:
        """What `nc_metrics` returns, of the features that were added."""
        if normalisation not in ("reported", "formula"):
            raise ValueError(f"normalisation = {normalisation!r} is not allowed: use 'reported' or 'formula'")
        n, n_classes = self.counts.sum(), len(self.counts)
        out = self.geometry | {"nc1": math.nan, "nc4": math.nan}
        if len(self.singular):
            out |= {"nc1": self.spread_of_means().sum() / n, "nc4": self.agree.sum() / n.double()}
        if normalisation == "formula":
            out["nc0"] = out["nc0"] / n
            for key in ("nc2", "nc2w", "nc2m", "nc2wc", "nc2mc"):
                out[key] = out[key] / n_classes**2
            for key in ("nc3", "nc3c"):
                out[key] = out[key] / self.means.numel()
        return {key: float(out[key]) for key in KEYS}

    def spread_of_means(self) -> torch.Tensor:
        """`spread` [r] without what rounding the means added to it."""
        too_much = torch.zeros_like(self.spread)
        for n, rounding in zip(self.counts.split(256), self.rounding.split(256)):
            too_much += n.double() @ rounding.double().square()
        return (self.spread - too_much).clamp_min(0)


def _linear(of, sizes):
    return of[0] * sizes + of[1]


def _largest(values, noise):
    """The place of each row's largest value, and the rows in which another is within the `noise` of a row [n] of it."""
    largest, places = values.max(1)
    return places, ((values >= (largest - 2 * noise)[:, None]).sum(1) > 1).nonzero().flatten()


def _noise(dtype) -> float:
    """The share of the class means' norm that their rounding may be, for features of this type: what lies under it is noise.

    Features carry a relative rounding of their type's eps, and so do the means. Half precision is judged as float32: its
    noise averages out within a class. What a sum in float64 adds does not: it grows like the root of a class's samples, of
    which a million are allowed for.
    """
    wide = torch.promote_types(dtype, torch.float32)
    return (1024 if wide == torch.float64 else 4) * torch.finfo(wide).eps


def _between_class_svd(centred, scale, dtype):
    """Thin SVD M^T = U diag(s) V^T, cut at the true rank r -> (M^T M [K, K] if it was made, U [K, r], s [r], V^T [r, p]).

    `scale` is the norm of the means before they were centred.
    """
    least, (k, p) = _noise(dtype) * scale, centred.shape
    if dtype == torch.float64 or k <= 64:
        u, s, vt = torch.linalg.svd(centred, full_matrices=False)
        rank = min(int((s > least).sum()), k - 1)
        return None, u[:, :rank], s[:rank], vt[:rank]
    # float64 eigenvalues of the smaller Gram matrix hold s to 1e-8 of the largest, which is enough here and ten times as fast
    gram = centred @ centred.T if k <= p else centred.T @ centred
    squares, vectors = torch.linalg.eigh(gram)
    s = squares.clamp_min(0).sqrt().flip(0)
    rank = min(int((s > least).sum()), k - 1)
    s, vectors = s[:rank], vectors.flip(1)[:, :rank]
    if k <= p:
        return gram, vectors, s, (vectors.T @ centred).div_(s[:, None])
    return None, (centred @ vectors).div_(s), s, vectors.T


class _DistanceToEtf:
    """|| G / ||G||_F - M* ||_F of a K x K matrix G whose rows come in blocks.

    Its differences are taken at a norm guessed from the first block, which is exact for one block and for collapsed classes,
    and corrected to the true norm afterwards, so that nothing cancels.
    """

    def __init__(self, n_classes: int):
        self.n_classes, self.guess = n_classes, 0.0
        self.sums: torch.Tensor | float = 0.0

    def add(self, block, start: int, scratch) -> None:
        k = self.n_classes
        if not self.guess:
            self.guess = float(block.norm()) * math.sqrt(k / len(block)) or 1.0
        difference = torch.div(block, self.guess, out=scratch).add_(1 / (k * math.sqrt(k - 1)))
        difference.diagonal(start).sub_(1 / math.sqrt(k - 1))
        pairs = ((difference, difference), (difference, block), (block, block))
        self.sums = torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in pairs]) + self.sums

    def value(self):
        of_differences, mixed, of_block = self.sums
        off = 1 / of_block.sqrt() - 1 / self.guess
        return (of_differences + off * (2 * mixed + off * of_block)).clamp_min(0).sqrt()


def _geometry(centred, gram, w_c, w_mean, svd, at_global_mean, f: int, radii: bool):
    """The metrics that class means and W [K, p] decide, all but NC0; and with `radii` what NC4's shortcuts need.

    Takes M^T, M^T M if it is at hand, W_c = W - w_mean and M^T's thin SVD, in blocks of rows: no further K x K or K x p matrix
    is made.
    Returns the metrics, and for each class y a radius [K] around mu_y within which mu_y is the nearest mean, one within which
    W, with logits `at_global_mean` [K] at mu_G, gives class y, the class that W gives mu_y itself, and ||m_y||^2.
    """
    (k, p), (u, s, vt) = centred.shape, svd
    blocks = torch.arange(k, device=centred.device).split(max(1, _BLOCK // max(k, p)))
    of_weights, both, other, scratch = centred.new_empty(4, len(blocks[0]), k)
    etf = {n: _DistanceToEtf(k) for n in ("nc2", "nc2w", "nc2wc", "nc2m", "nc2mc")}
    angles = dict.fromkeys(("nc2", "nc2w", "nc2wc"), centred.new_zeros(()))
    norms = {"nc2": centred.norm(dim=1), "nc2wc": w_c.norm(dim=1)}
    norms["nc2w"] = torch.cat([(w_c[b] + w_mean).norm(dim=1) for b in blocks])
    of_w, of_w_c, of_m = (norms[n].norm() for n in ("nc2w", "nc2wc", "nc2"))
    w_along, m_along = w_c @ w_mean, centred @ w_mean  # with them Grams of W follow from those of W_c
    inexact = len(s) > 0 and bool(s[-1] < 1e-4 * s[0])
    if inexact:  # rows that were had by division by s are orthogonal to 1e-16 (s_1 / s)^2 only
        vt = torch.linalg.qr(vt.T).Q.T
    along, to_size = torch.dot(w_c.flatten(), centred.flatten()) / of_m**2, float(of_w_c / of_m)
    apart, off_span, in_span = centred.new_zeros(3)
    near, clear, top = [], [], []
    for b in blocks:
        rows, start, n = slice(int(b[0]), int(b[-1]) + 1), int(b[0]), len(b)
        of_weights, both, other, scratch = (x[:n] for x in (of_weights, both, other, scratch))
        w_c_rows, m_rows = w_c[rows], centred[rows]
        of_means = m_rows @ centred.T if gram is None else gram[rows]
        torch.mm(w_c_rows, w_c.T, out=of_weights)
        torch.mm(m_rows, w_c.T, out=both)  # (W_c M)^T
        if radii:
            near.append(_gaps(of_means, norms["nc2"], start, -1e-13, scratch).min(1).values / 2)
            gaps = ldexp(_gaps(of_weights, norms["nc2wc"], start, 1e-13, scratch), -f)
            logits = torch.add(at_global_mean, both, alpha=2.0 ** -min(f, 1000), out=other)
            largest, classes = logits.max(1)
            own = logits.diagonal(start)[:, None] - 1e-12 * logits.abs().max(1, keepdim=True).values
            logits.sub_(own).neg_().div_(gaps).diagonal(start).fill_(math.inf)
            clear.append(logits.min(1).values)
            top.append(classes)
        etf["nc2"].add(of_means, start, scratch)
        etf["nc2wc"].add(of_weights, start, scratch)
        etf["nc2mc"].add(both, start, scratch)
        etf["nc2m"].add(both.add_(m_along[rows, None]), start, scratch)
        torch.add(of_weights, w_along + w_mean.square().sum(), out=other).add_(w_along[rows, None])
        etf["nc2w"].add(other, start, scratch)
        for name, block in (("nc2", of_means), ("nc2wc", of_weights), ("nc2w", other)):
            block.div_(norms[name][rows, None]).div_(norms[name]).add_(1 / (k - 1)).diagonal(start).zero_()
            block[norms[name][rows] == 0] = math.nan
            angles[name] = angles[name] + block.abs_().sum()
        inside = w_c_rows @ vt.T
        apart += _squares(torch.sub(w_c_rows, m_rows, alpha=to_size))
        off_span += _squares(torch.addmm(w_c_rows, inside, vt, alpha=-1))
        m = m_rows @ vt.T if inexact else u[rows] * s  # M^T in the basis V
        in_span += _squares(inside - along * m)
    out = {name: of_k_by_k.value() for name, of_k_by_k in etf.items()}
    out["nc3c"] = apart.sqrt() / of_w_c
    # NC3^2 = 2 - 2 cos_c sqrt(1 - gauge_share), without cancellation; `shorter` is 1 - ||W_c|| / ||W||
    gauge_share = k * w_mean.square().sum() / of_w**2
    shorter = gauge_share / (1 + of_w_c / of_w)
    out["nc3"] = (shorter.square() + apart / (of_w_c * of_w).clamp_min(1e-300) + gauge_share).sqrt()
    for name, n, a in (("nc2", "nc2n", "nc2a"), ("nc2w", "nc2wn", "nc2wa"), ("nc2wc", "nc2wnc", "nc2wac")):
        out[n] = norms[name].std(correction=0) / norms[name].mean()
        out[a] = angles[name] / (k * (k - 1))
    out["gauge_share"] = gauge_share
    out["off_span_share"] = off_span / of_w**2 if len(s) else math.nan
    out["in_span_share"] = in_span / of_w**2 if len(s) else math.nan
    if not radii:
        return out, None
    slack = 1 - 1e-4  # for the rounding of what is compared with it
    return out, (slack * torch.cat(near), slack * torch.cat(clear), torch.cat(top), norms["nc2"].square())


def _squares(matrix):
    return torch.dot(matrix.flatten(), matrix.flatten())


def _gaps(gram, norms, start: int, noise: float, out):
    """Distances [n, K] of n rows, from `start` on, to all K, from their inner products and norms; inf to itself. `noise`, of
    the largest square, is added."""
    squares = norms.square()
    of_rows = squares[start : start + len(gram), None]
    torch.mul(gram, -2, out=out).add_(squares + noise * squares.max()).add_(of_rows)
    out.clamp_min_(0).sqrt_().diagonal(start).fill_(math.inf)
    return out
