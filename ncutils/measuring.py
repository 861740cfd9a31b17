"""Neural collapse of any classifier: `measure` passes a loader through it and returns every metric, a table and a picture;
`Tracker` keeps one measurement a call while it trains.

Symbols as in `metrics`: N samples, p feature width, K classes, W [K, p], class means mu_k, centred class means M [p, K].
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from ncutils import metrics
from ncutils.machine import free_memory, pick_device, progress_bar

# what torch has no arithmetic for, or none that the metrics are of
_DTYPES = {t for t in vars(torch).values() if isinstance(t, torch.dtype)}
_NO_NUMBERS = {t for t in _DTYPES if t.is_complex or t.is_floating_point} - {*metrics.FLOATS}

# of `Measurement.table`, where a name is not its row's
_ROWS = {"nc4_bias_test": "nc4", "nc4_test": "nc4_no_bias"}

# that two passes over the same features agree to: of their mean, and of one of them; where the network computes in half precision
_SAME, _SAME_IN_HALF = (1e-5, 1e-3), (1e-3, 5e-2)


def measure(
    model: nn.Module,
    loader: Iterable,
    *,
    head: str | nn.Module | None = None,
    test: Iterable | None = None,
    ood: Iterable | None = None,
    layers: Sequence[str | nn.Module] | None = None,
    classes: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    keep: int | None = None,
) -> Measurement:
    """Every neural-collapse metric of a classifier on the samples of a loader.

    The model runs in evaluation mode, without gradients and uncompiled, within whatever autocast surrounds the call, and is
    left as it was: its modules' modes, its device, torch's random numbers. Features are kept for a second look where they fit
    into `keep` bytes; otherwise the loader is passed over twice, and nothing is kept beside one batch, class means and W.

    Arguments:
        model: any module with a linear last layer, also compiled or wrapped in DataParallel. What it returns does not matter.
        loader: gives the training set each time it is iterated over, in any order, as batches (inputs, labels) or as
            mappings with "labels" or "label" whose rest goes into the model by name. Labels are integers in [0, K).
        head: the last layer, a module or its name; default: the last `torch.nn.Linear` that runs.
        test: such a loader of a test set, for `nc1_test`, `nc4_test` and so on, around the training set's class means.
        ood: a loader of other data, for NC5. Its labels, if it has any, are not looked at.
        layers: modules, or their names, whose outputs are measured, too, flattened to [n, p]; the last output, where one runs
            more than once. Class means stand in for W there, so that their rows in `Measurement.frame` have no metric of W.
        classes: at least two, which alone are measured: samples of others are passed over, rows of W and b left out (default: all,
            and each needs a sample). `accuracy` still asks for the largest of all logits.
        device: where the model runs (default: where it is); it is moved back afterwards.
        keep: bytes of features (default: a quarter of the free memory).

    Raises ValueError in one sentence: for a loader that can be iterated over only once, a model without a linear layer, a head,
    layer or class that there is not, batches or labels of another form, features whose width changes, a class without a sample, and a
    second pass that gives other samples than the first.
    """
    loaders = {"loader": loader, "test": test, "ood": ood}
    for name, value in loaders.items():
        if value is not None and (not isinstance(value, Iterable) or isinstance(value, Iterator)):
            raise ValueError(
                f"{name} must give its batches each time it is iterated over, as a torch DataLoader or a list does; "
                f"{type(value).__name__} does not"
            )
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, numbers.Real) or not keep >= 0):
        raise ValueError(f"keep = {keep!r} is not allowed: it must be a number of bytes, 0 or more, or none")
    with contextlib.ExitStack() as stack:
        inner, where = stack.enter_context(_at_rest(model, device))
        for value in loaders.values():
            stack.enter_context(_same_order_afterwards(value))
        network = stack.enter_context(_Network(inner, head, layers, where, classes))
        keep = max(0, free_memory(device=network.place) // 4) if keep is None else keep
        return _measured(network, loaders, keep)


class Measurement(dict):
    """The metrics of one network by name: floats, nan where there is no value. Prints as a table.

    `metrics.nc_metrics` says what the names of its metrics mean. Beside them, on the training set or, with `_test`, on the test
    set around the training set's class means::

        accuracy       share of samples whose label has the largest logit of the network itself
        nearest_mean   share of samples whose nearest class mean is that of their label
        nc1_pinv       NC1 with the singular values of Sigma_B that torch.linalg.pinv keeps by default in the features' type
        nc1_svd        NC1 with the K - 1 largest singular values; nan where there are fewer             (Han et al. 2022)
        nc1_quotient   tr(Sigma_W) / tr(Sigma_B)                                                        (Tirer et al. 2023)
        nc1_cdnv       class-distance normalised variance, `cdnv`                                      (Galanti et al. 2021)
        gnc2_dist      variance over pairs of classes of the distance of m_k / ||m_k||, `pair_statistics` (Liu et al. 2023)
        gnc2_log       the same of the logarithm of 1 / distance                                           (Liu et al. 2023)
        unc3           variance over classes of w_k . m_k, unbiased                                         (Wu and Papyan 2024)
        nc4_test       NC4 of the test set by W alone, as the paper's released code and `History` have it
        nc4_bias_test  NC4 of the test set by W and b
        nc5            mean over classes of |cos(mu_k, mean feature of the other data)|                  (Ammar et al. 2024)

    Attributes: `frame`, a row for each layer, the head's features last; `classes`, a row for each class, shares of the test set with `_test`;
    `means` [K, p], `weight` [K, p] and `bias` [K] or None in float64 on the CPU; `head`, the name of the last layer; `n` samples.
    """

    def __init__(self, values, frame, classes, means, weight, bias, head, n):
        super().__init__(values)
        self.frame: pd.DataFrame = frame
        self.classes: pd.DataFrame = classes
        self.means, self.weight, self.bias, self.head, self.n = means, weight, bias, head, n

    @property
    def table(self) -> pd.DataFrame:
        """Metrics (rows) on the training set, on the test set and against other data, where there are any. NC4 is by W and b in
        both; `nc4_test`, by W alone, has a row of its own, `nc4_no_bias`.
        """
        rows: dict[str, dict] = {}
        for name, value in self.items():
            column = "test" if name.endswith("_test") else "other data" if name == "nc5" else "training"
            row = _ROWS.get(name, name.removesuffix("_test"))
            rows.setdefault(row, {})[column] = value
        found = pd.DataFrame.from_dict(rows, orient="index")
        return found[[c for c in ("training", "test", "other data") if c in found]]

    def pairs(self, kernel: str | Callable = "cosine", exponent: float = 1.0) -> pd.DataFrame:
        """A value for each pair of classes [K, K], nan on the diagonal: "cosine" or "inner", the product of m_k and m_l; "cdnv",
        of which `cdnv` is the mean, with its `exponent`; or a kernel of `pair_statistics`. ValueError for another name.
        """
        every = torch.arange(len(self.means))
        centred = self.means - self.means.mean(0)
        unit = F.normalize(centred, eps=0)
        if kernel == "cdnv":
            values = _cdnv(self.means, torch.tensor(self.classes["variance"].to_numpy()), every, exponent)
        elif kernel in ("cosine", "inner"):
            of = unit if kernel == "cosine" else centred
            values = of @ of.T
        else:
            values = _kernel(kernel, self.means.shape[1], "cosine", "inner", "cdnv")(_distances(unit, every))
        values.fill_diagonal_(math.nan)
        return pd.DataFrame(values.numpy(), self.classes.index, self.classes.index)

    def __str__(self) -> str:
        (k, p), text = self.weight.shape, self.table.to_string(na_rep="", float_format="{:.4g}".format)
        return f"{self.head}: N = {self.n:,}, p = {p:,}, K = {k:,}\n{text}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table.to_html(na_rep="", float_format="{:.4g}".format)

    def plot(self):
        """A matplotlib Figure: cosines between class means and of weights with means, whose off-diagonal is -1/(K-1) where they
        collapse; the metrics that go to zero then, on the test set, too, and gauge-fixed; and these by layer, if there are any.
        """
        from matplotlib import pyplot as plt

        by_layer = len(self.frame) > 1
        rows, across, width = (2, 2, 4) if by_layer else (1, 3, 3.4)
        figure, axes = plt.subplots(rows, across, figsize=(width * across, 3.2 * rows), layout="constrained")
        axes = axes.flat
        centred, k = self.means - self.means.mean(0), len(self.means)
        unit, of_weights = F.normalize(centred, eps=0), F.normalize(self.weight, eps=0)
        for axis, cosines, name in (
            (axes[0], unit @ unit.T, "class means"),
            (axes[1], of_weights @ unit.T, "weights (rows), means"),
        ):
            image = axis.imshow(cosines.numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
            axis.set(title=f"cosines: {name}", xlabel="class", ylabel="class")
            axis.grid(False)
        figure.colorbar(image, ax=axes[:2].tolist(), shrink=0.8).ax.axhline(-1 / (k - 1), color="black")
        names = ["nc1", "nc2", "nc2w", "nc2m", "nc3", "1 - nc4"]
        of = ("", "training", "o"), ("c", "gauge fixed", "x"), ("_test", "test", "s")
        known = self | {"1 - nc4": 1 - self["nc4"], "1 - nc4_test": 1 - self.get("nc4_bias_test", math.nan)}
        for suffix, label, marker in of:
            heights = [known.get(name + suffix, math.nan) for name in names]
            if any(math.isfinite(height) for height in heights):
                axes[2].plot(names, heights, marker, label=label, fillstyle="none" if suffix else "full")
        axes[2].set_title(f"zero at collapse; NC0 = {self['nc0']:.3g}")
        if by_layer:
            for name in ("nc1", "nc2", "nc1_cdnv"):
                axes[3].plot(self.frame.index, self.frame[name], "o-", label=name)
            axes[3].plot(
                self.frame.index, 1 - self.frame["nearest_mean"], "o-", label="error of the nearest mean"
            )
            axes[3].set(title="by layer", xlabel="layer; the last is the head's input")
            axes[3].tick_params(axis="x", rotation=45)
        for axis in axes[2:]:
            heights = [float(y) for line in axis.lines for y in line.get_ydata() if 0 < y < math.inf]
            axis.set_yscale("symlog", linthresh=max(1e-8, min(heights, default=1) / 2))
            axis.set_ylim(0, 30 * max(heights, default=1))  # room for the legend
            axis.legend(fontsize="small", loc="upper right", ncols=2)
        return _shown_once(figure)


class Tracker:
    """One measurement a call, while a model trains: `tracker = Tracker(model, loader)`, then `tracker(epoch)` where wanted.

    Takes what `measure` takes. `measurements` are what `measure` returned, `at` what the calls were given (default: their
    number, from 0).
    """

    def __init__(self, model: nn.Module, loader: Iterable, **options):
        self.model, self.loader, self.options = model, loader, options
        self.at: list[float] = []
        self.measurements: list[Measurement] = []

    def __call__(self, at: float | None = None) -> Measurement:
        """Measures now. `at` is the epoch or step, where the number of the call is not meant."""
        found = measure(self.model, self.loader, **self.options)
        self.at.append(len(self.at) if at is None else at)
        self.measurements.append(found)
        return found

    @property
    def frame(self) -> pd.DataFrame:
        """All measurements: a row for each call and layer, indexed by `at` and `layer`."""
        if not self.measurements:
            raise ValueError("nothing was measured yet: call the tracker first")
        return pd.concat([m.frame for m in self.measurements], keys=self.at, names=["at", "layer"])

    def plot(self, names: Sequence[str] = ("nc0", "nc1", "nc2", "nc3"), xlabel: str = "epoch"):
        """A matplotlib Figure: these metrics of the head's features over training, NC0 relative to its start."""
        from matplotlib import pyplot as plt

        frame = self.frame.xs(self.measurements[-1].head, level="layer")
        if unknown := [name for name in names if name not in frame]:
            raise ValueError(f"names = {unknown} were not measured: {', '.join(frame)}")
        figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
        for name in names:
            start = frame[name].iloc[0] if name == "nc0" else 1
            label = "nc0 over its first" if name == "nc0" else name
            axis.plot(frame.index, frame[name] / start, "o-", markersize=3, label=label)
        axis.set(yscale="log", xlabel=xlabel)
        axis.legend(fontsize="small")
        return _shown_once(figure)


def _shown_once(figure):
    """The figure: a notebook shows what a cell returns, and again what pyplot has open at its end."""
    from matplotlib import pyplot as plt

    if "inline" in plt.get_backend():
        plt.close(figure)
    return figure


def cdnv(means: torch.Tensor, variances: torch.Tensor, exponent: float = 1.0) -> float:
    """Class-distance normalised variance: the mean over pairs k != l of (v_k + v_l) / 2 / ||mu_k - mu_l||^(2 exponent).

    `means` [K, p], and `variances` [K], the mean of ||h - mu_k||^2 in each class (Galanti et al. 2021; the exponent: Wu and
    Papyan 2024).
    """
    means, variances, k = means.double(), variances.double(), len(means)
    total = sum(_cdnv(means, variances, i, exponent).sum() for i in _blocks(means))
    return float(total / (k * (k - 1)))


def _cdnv(means, variances, i, exponent):
    """The terms of `cdnv` of the classes i with all others, 0 of a class with itself."""
    ratios = (variances[i, None] + variances) / 2 / _distances(means, i).square() ** exponent
    ratios.diagonal(int(i[0])).zero_()
    return ratios


def pair_statistics(means: torch.Tensor, kernel: str | Callable = "dist") -> tuple[float, float]:
    """Mean and variance over pairs of classes of a kernel of the distance d of their directions m_k / ||m_k||.

    `means` are class means [K, p], which are centred here; `kernel` is "dist", d; "log", log(1 / d); or "riesz",
    sign(p - 2) d^(2 - p), 1 at p = 2 (Liu et al. 2023); or a function of a tensor of distances, entry by entry. All are
    constant where the means are equiangular.
    """
    of_distances = _kernel(kernel, means.shape[1])
    unit, k = F.normalize(means.double() - means.double().mean(0), eps=0), len(means)
    n, mean, squares = 0, unit.new_zeros(()), unit.new_zeros(())  # of the pairs so far (Chan et al. 1983)
    for i in _blocks(unit):
        others = torch.arange(k, device=unit.device) != i[:, None]
        values = of_distances(_distances(unit, i))[others]
        step, n = values.mean() - mean, n + len(values)
        squares += (values - values.mean()).square().sum() + step**2 * len(values) * (n - len(values)) / n
        mean += step * len(values) / n
    return float(mean), float(squares / n)


def _kernel(kernel, p: int, *also: str) -> Callable:
    """A kernel of `pair_statistics` by name; `also` are names that the caller takes, too."""
    kernels = {
        "dist": lambda d: d,
        "log": lambda d: -d.log(),
        "riesz": lambda d: math.copysign(1, p - 2) * d ** (2 - p),
    }
    if not callable(kernel) and kernel not in kernels:
        raise ValueError(
            f"kernel = {kernel!r} is not allowed: use {', '.join([*also, *kernels])}, or a function"
        )
    return kernel if callable(kernel) else kernels[kernel]


def _blocks(rows: torch.Tensor):
    """Indices of the rows [K, p], so many at a time that K times as many entries are 8 MB of float64."""
    return torch.arange(len(rows), device=rows.device).split(max(1, 2**20 // len(rows)))


def _distances(rows, i):
    return torch.cdist(rows[i], rows, compute_mode="donot_use_mm_for_euclid_dist")


@contextlib.contextmanager
def _at_rest(model, device):
    """(the model without wrappers, the device it runs on): in evaluation mode, not compiled, without gradients, torch's random
    numbers put back; all as it was afterwards."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inner, parallel = model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(inner, parallel) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, parallel) else inner._orig_mod
    tensors = [*inner.parameters(), *inner.buffers()]
    before = tensors[0].device if tensors else torch.device("cpu")
    where = before if device is None else pick_device(device)
    if before.type == "meta":
        raise ValueError("model is on device meta, which holds no numbers: give it weights first")
    if where != before and any(t.device != before for t in tensors):
        raise ValueError(f"device = {device!r} cannot be given for a model on several devices")
    modes = [(module, module.training) for module in inner.modules()]
    with (
        torch.no_grad(),
        torch.random.fork_rng([where] if where.type == "cuda" else []),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            yield inner.eval() if where == before else inner.eval().to(where), where
        finally:
            if where != before:
                inner.to(before)
            # parents first; `train` may do more than to set the flag: it takes a merged adapter out again
            for module, training in modes:
                if module.training != training:
                    module.train(training)
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def _same_order_afterwards(loader):
    """Puts back the generators that draw a loader's order, so that measuring does not change the training it is part of."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    drawn = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}.values()
    states = [(g, g.get_state()) for g in drawn if isinstance(g, torch.Generator)]
    under_way = getattr(loader, "_iterator", None)  # persistent workers have one iterator for all who ask
    if under_way is not None:
        loader._iterator = None
    try:
        yield
    finally:
        if under_way is not None:
            loader._iterator = under_way
        for generator, state in states:
            generator.set_state(state)


class _Network:
    """A model that is watched: features of its head and its layers, batch by batch.

    `place` is where the sums are kept: on the CPU for a device without float64.
    """

    def __init__(self, model, head, layers, device, classes=None):
        self.model, self.device, self.classes = model, device, classes
        self.place = torch.device("cpu") if device.type == "mps" else device
        self.names = {module: name for name, module in model.named_modules()}
        self.half, self.ran, self.seen, self.widths, self.faults = False, None, {}, {}, {}
        linear = [module for module in self.names if isinstance(module, nn.Linear)]
        if head is None and not linear:
            raise ValueError("model has no torch.nn.Linear: name its last layer with head")
        named = [] if head is None else [self._module("head", head)]
        self.candidates = named or list(dict.fromkeys(map(self._whole, linear)))
        layers = [layers] if isinstance(layers, str | nn.Module) else layers or ()
        self.layers = {self.names[m]: m for m in (self._module("layers", layer) for layer in layers)}

    def _whole(self, linear):
        """The layer that a linear one is part of: an adapter's lies in one whose weight is that of another inside."""
        path = self.names[linear].split(".")
        for module in (self.model.get_submodule(".".join(path[:i])) for i in range(len(path))):
            weight = getattr(module, "weight", None)
            if weight is not None and any(
                m.weight is weight for m in module.modules() if isinstance(m, nn.Linear)
            ):
                return module
        return linear

    def _module(self, argument, wanted):
        known = dict(self.model.named_modules(remove_duplicate=False))
        if isinstance(wanted, nn.Module) and wanted in self.names:
            return wanted
        if isinstance(wanted, str) and wanted in known:
            return known[wanted]
        what = wanted if isinstance(wanted, str) else type(wanted).__name__
        raise ValueError(
            f"{argument} = {what!r} is no module of the model, whose modules are {', '.join(filter(None, known))}"
        )

    def __enter__(self):
        self.hooks = []
        try:
            for m in self.candidates:
                self.hooks.append(m.register_forward_hook(self._see_head, with_kwargs=True))
            for m in self.layers.values():
                self.hooks.append(m.register_forward_hook(self._see))
        except RuntimeError as error:  # a scripted module takes none
            self.__exit__()
            raise ValueError(f"a head or layer cannot be watched: {error}") from None
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _see(self, module, inputs, output):
        self.seen[self.names[module]] = _first_tensor(output).detach().clone()  # the next may work in place

    def _see_head(self, module, inputs, kwargs, output):
        if module not in self.candidates:  # another linear layer, once the head is known
            return
        given = _first_tensor([*inputs, *kwargs.values()]).detach().clone()
        self.ran = module, given, _first_tensor(output).detach()
        if module not in self.faults:  # once
            self.faults[module] = _fault(module, *self.ran[1:])
        self.half = self.half or torch.is_autocast_enabled(self.device.type)

    def parts(self, loader, what: str, labelled: bool = True):
        """(features by name, labels [n], whether the network's own class is the label's [n]) of each batch; labels are None
        where they are not asked for."""
        with progress_bar(operator.length_hint(loader), f"features of {what}", "batch") as bar:
            for batch in loader:
                inputs, labels = _split(batch, what, labelled)
                features, logits = self._run(inputs, what)
                if labelled:
                    labels = self._labels(labels, len(logits), what)
                    yield self._chosen(features, labels, logits.argmax(1) == labels)
                else:
                    yield features, None, None
                bar.update()

    def _run(self, inputs, what):
        inputs, self.ran = _moved(inputs, self.device), None
        self.seen.clear()
        if isinstance(inputs, Mapping):
            self.model(**inputs)
        elif isinstance(inputs, list):
            self.model(*inputs)
        else:
            self.model(inputs)
        if self.ran is None:
            raise ValueError(f"head did not run: none of {', '.join(self.names[m] for m in self.candidates)}")
        module, h, logits = self.ran
        if fault := self.faults[module]:
            raise ValueError(f"head = {self.names[module]!r} {fault}")
        self.candidates = [module]  # the same in each batch
        if self.names[module] in self.layers:
            raise ValueError(f"layers names {self.names[module]!r}, the head, whose input is measured anyway")
        if missing := [name for name in self.layers if name not in self.seen]:
            raise ValueError(f"layers = {missing} did not run")
        logits = logits.reshape(-1, logits.shape[-1]).to(self.place)
        if flat := [name for name in self.layers if self.seen[name].ndim < 2]:
            raise ValueError(
                f"layer {flat[0]!r} gave no row for each sample of {what}: it cannot be measured"
            )
        found = {name: self.seen[name].flatten(1) for name in self.layers}
        found[self.names[module]] = h.reshape(-1, h.shape[-1])
        for name, value in found.items():
            if value.dtype in (torch.bool, *_NO_NUMBERS):
                raise ValueError(f"layer {name!r} gave {value.dtype} for a batch of {what}: convert it first")
            if len(value) != len(logits):
                raise ValueError(
                    f"layer {name!r} gave {len(value)} rows for {len(logits)} samples of {what}: its first dimension must be "
                    "the batch"
                )
            if (width := value.shape[1]) != (before := self.widths.setdefault(name, width)):
                raise ValueError(
                    f"layer {name!r} gave {width} features for a batch of {what}, {before} before: all inputs must be of one size"
                )
        return {name: value.to(self.place) for name, value in found.items()}, logits

    @property
    def head(self) -> nn.Module:
        """The last layer, once a batch has passed."""
        return self.candidates[0]

    @functools.cached_property
    def rows(self):
        """The classes that are measured, as indices of rows of W [K, p]."""
        k, wanted = len(self.head.weight), self.classes
        if wanted is None:
            return torch.arange(k, device=self.place)
        if isinstance(wanted, torch.Tensor):
            wanted = wanted.tolist()
        wanted = list(wanted) if isinstance(wanted, Iterable) else [wanted]
        known = all(isinstance(c, numbers.Integral) and 0 <= c < k for c in wanted)
        if not known or not 2 <= len(wanted) == len(set(wanted)):
            raise ValueError(
                f"classes must be two or more different whole numbers in [0, {k}) (K = rows of the head's weight), got {wanted}"
            )
        return torch.tensor([int(c) for c in wanted], device=self.place)

    def _chosen(self, features, labels, hits):
        """The samples of the classes that are measured, their labels counted among these."""
        if self.classes is None:
            return features, labels, hits
        place = torch.full((len(self.head.weight),), -1, device=self.place)
        place[self.rows] = torch.arange(len(self.rows), device=self.place)
        labels = place[labels]
        known = labels >= 0
        return {name: h[known] for name, h in features.items()}, labels[known], hits[known]

    def classifier(self):
        """W [K, p] and b [K] or None where the sums are, of the classes that are measured."""
        rows = slice(None) if self.classes is None else self.rows
        bias = getattr(self.head, "bias", None)
        weight = self.head.weight.detach().to(self.place)[rows]
        bias = None if bias is None else bias.detach().to(self.place)[rows]
        for name, of_head in (("weight", weight), ("bias", bias)):
            if of_head is not None and of_head.dtype in _NO_NUMBERS:
                raise ValueError(f"head: its {name} is of type {of_head.dtype}: convert it first")
            if of_head is not None and not torch.isfinite(of_head).all():
                raise ValueError(f"head: its {name} holds NaN or infinity")
        return weight, bias

    def _labels(self, labels, n, what):
        k = len(self.head.weight)
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"labels of {what} must be integers, got {type(labels).__name__}") from None
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"labels of {what} must be integers, got {labels.dtype}")
        if labels.numel() != n:
            raise ValueError(f"labels of {what} must be one for each of {n} features, got {[*labels.shape]}")
        labels = labels.reshape(-1).to(self.place, torch.int64)
        if n and (labels.min() < 0 or labels.max() >= k):
            raise ValueError(
                f"labels of {what} must lie in [0, {k}) (K = rows of the weight of {self.names[self.head]!r}, the head; head names another "
                f"layer), found {int(labels.min())} to {int(labels.max())}"
            )
        return labels


def _measured(network, loaders, keep) -> Measurement:
    place, sums, size = network.place, {}, 0
    kept: list | None = []
    right = torch.zeros((), dtype=torch.int64, device=place)
    for features, labels, hits in network.parts(loaders["loader"], "loader"):
        with metrics.full_precision(place):
            for name, h in features.items():
                if name not in sums:
                    sums[name] = metrics.ClassSums(len(network.rows), h.shape[1], place)
                sums[name].add(h, labels)
        right += hits.sum()
        size += sum(h.nbytes for h in features.values())
        if kept is not None:
            kept.append((features, labels, hits))
            if size > keep:
                kept = None
    if not sums:
        raise ValueError("loader gave no batch")
    head, dtypes = network.names[network.head], {name: h.dtype for name, h in features.items()}
    if empty := network.rows[sums[head].counts == 0].tolist():
        raise ValueError(
            f"labels of loader: class {empty[0]} of {len(network.head.weight)} has no sample; every class needs at least one, or "
            "those that have some are named in classes"
        )
    with metrics.full_precision(place):
        weight, bias = network.classifier()
        means = {name: of_name.means() for name, of_name in sums.items()}
        classifiers = {name: (weight, bias) if name == head else _of_means(mu) for name, mu in means.items()}
        collapse = _collapse(means, classifiers, dtypes)
        again = {n: metrics.ClassSums(len(mu), mu.shape[1], place) for n, mu in means.items() if kept is None}
    for features, labels, _ in kept if kept is not None else network.parts(loaders["loader"], "loader"):
        with metrics.full_precision(place):
            for name, h in features.items():
                collapse[name].add(h, labels)
            for name, of_name in again.items():
                of_name.add(features[name], labels)
    for name, of_name in again.items():
        _check_same(sums[name], of_name, collapse[name], network.half or dtypes[name].itemsize == 2)
    del kept
    rows = {name: _values(c) for name, c in collapse.items()}
    mu, w, n = means[head].cpu(), weight.double().cpu(), int(collapse[head].counts.sum())
    by_class = _by_class(mu, w, collapse[head], network.rows.cpu())
    of_w = {"accuracy": int(right) / n, "unc3": float((w * (mu - mu.mean(0))).sum(1).var())}
    rows[head] = collapse[head].metrics() | rows[head] | of_w
    if loaders["test"] is not None:
        of_test, of_classes = _of_test(network, loaders["test"], means, classifiers, dtypes, head)
        by_class = by_class.assign(**of_classes)
        for name, values in of_test.items():
            rows[name] |= values
    if loaders["ood"] is not None:
        for name, value in _nc5(network, loaders["ood"], means).items():
            rows[name]["nc5"] = value
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame = frame[[*rows[head], *(c for c in frame if c not in rows[head])]].rename_axis("layer")
    bias = None if bias is None else bias.double().cpu()
    return Measurement(rows[head], frame, by_class, mu, w, bias, head, n)


def _collapse(means, classifiers, dtypes):
    """Of each layer, by its class means, linear classifier and type."""
    return {n: metrics.Collapse(mu, *classifiers[n], dtypes[n], True) for n, mu in means.items()}


def _of_means(means):
    """The linear classifier of the nearest class mean, W and b: argmax of W h + b is the class of the nearest of `means`."""
    centred = means - means.mean(0)
    return centred, -(centred.square().sum(1) / 2 + centred @ means.mean(0))


def _values(collapse) -> dict[str, float]:
    """What a layer's class means and deviations give without W."""
    n, (k, p), eps = (collapse.counts.sum(), collapse.means.shape, torch.finfo(collapse.dtype).eps)
    spread, s, values = collapse.spread_of_means(), collapse.singular, collapse.metrics()
    out = {name: values[name] for name in ("nc1", "nc2", "nc2n", "nc2a")}
    kept = s**2 > p * eps * s[:1] ** 2 if p > 1 else s > 0
    out["nc1_pinv"] = float(spread[kept].sum() / n) if len(s) else math.nan
    out["nc1_svd"] = out["nc1"] if len(s) == k - 1 else math.nan
    out |= _variances(collapse)
    out |= {f"gnc2_{kernel}": pair_statistics(collapse.means, kernel)[1] for kernel in ("dist", "log")}
    return out


def _variances(collapse) -> dict[str, float]:
    """The quotient of traces, CDNV, and how good the nearest mean is."""
    n, means = collapse.counts.sum(), metrics.ldexp(collapse.means, -collapse.exponent)
    between = (means - means.mean(0)).square().sum() / len(means)
    return {
        "nc1_quotient": float(collapse.squares.sum() / n / between),
        "nc1_cdnv": cdnv(means, collapse.squares / collapse.counts),
        "nearest_mean": float(_share(collapse, collapse.nearest_right.sum(), n)),
    }


def _share(collapse, right, of):
    """What share of samples is `right`: of none it is known where all class means are equal."""
    return right / (of.double() if len(collapse.singular) else math.nan)


def _of_test(network, loader, means, classifiers, dtypes, head) -> tuple[dict[str, dict[str, float]], dict]:
    """Metrics of a test set around the training set's class means, by layer; and columns of `Measurement.classes`."""
    with metrics.full_precision(network.place):
        collapse = _collapse(means, classifiers, dtypes)
        by_weight = metrics.Collapse(means[head], classifiers[head][0], dtype=dtypes[head])
    right = 0
    for features, labels, hits in network.parts(loader, "test"):
        with metrics.full_precision(network.place):
            for name, h in features.items():
                _check_finite(name, h, "test")
                collapse[name].add(h, labels)
            by_weight.add(features[head], labels)
            right += int(hits.sum())
    if not by_weight.counts.sum():
        raise ValueError("test gave no sample")
    out = {}
    for name, c in collapse.items():
        values = {"nc1": c.metrics()["nc1"]} | _variances(c)
        out[name] = {f"{key}_test": value for key, value in values.items()}
    out[head]["nc4_test"] = by_weight.metrics()["nc4"]
    out[head]["nc4_bias_test"] = collapse[head].metrics()["nc4"]
    out[head]["accuracy_test"] = right / int(by_weight.counts.sum())
    of_classes = {
        "n_test": by_weight.counts,
        "nc4_test": _share(by_weight, by_weight.agree, by_weight.counts),
        "nearest_mean_test": _share(by_weight, by_weight.nearest_right, by_weight.counts),
    }
    return out, {name: values.cpu().numpy() for name, values in of_classes.items()}


def _nc5(network, loader, means) -> dict[str, float]:
    """Mean over classes of |cos(mu_k, mean feature of other data)|, by layer."""
    sums, n = {name: mu.new_zeros(mu.shape[1]) for name, mu in means.items()}, 0
    for features, _, _ in network.parts(loader, "ood", labelled=False):
        for name, h in features.items():
            _check_finite(name, h, "ood")
            sums[name] += h.sum(0, dtype=torch.float64)
        n += len(h)
    if not n:
        raise ValueError("ood gave no sample")
    cosines = {name: _units(means[name]) @ _units(total[None]).T for name, total in sums.items()}
    return {name: float(values.abs().mean()) for name, values in cosines.items()}


def _units(vectors):
    """Rows [n, p] over their norms, whatever their scale."""
    return F.normalize(vectors / vectors.abs().amax(1, keepdim=True), eps=0)


def _by_class(means, weight, collapse, classes) -> pd.DataFrame:
    """A row for each class: its samples, its shares of NC4 and of the nearest mean, norms and alignment of m_k and w_k."""
    centred, counts = means - means.mean(0), collapse.counts.cpu()
    m, w = centred.norm(dim=1), weight.norm(dim=1)
    columns = {
        "n": counts,
        "nc4": _share(collapse, collapse.agree, collapse.counts).cpu(),
        "nearest_mean": _share(collapse, collapse.nearest_right, collapse.counts).cpu(),
        "variance": metrics.ldexp(collapse.squares.cpu() / counts, 2 * collapse.exponent),
        "mean_norm": m,
        "weight_norm": w,
        "cosine": (weight * centred).sum(1) / m / w,
        "distance": (weight / w[:, None] - centred / m[:, None]).norm(dim=1),
    }
    index = pd.Index(classes.numpy(), name="class")
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index)


def _check_finite(name, features, what) -> None:
    if not torch.isfinite(features).all():
        raise ValueError(f"layer {name!r} gave NaN or infinity for a batch of {what}")


def _check_same(first, second, collapse, half: bool) -> None:
    """Raises ValueError unless two passes saw the same samples: as many of each class, with the same mean but for rounding.

    The means differ by rounding in each feature; or by that of one random image for another, which averages out over a class.
    """
    of_mean, of_one = _SAME_IN_HALF if half else _SAME
    same = torch.equal(first.counts, second.counts)
    if same:
        means, counts = first.means(), first.counts[:, None]
        apart = metrics.ldexp(second.means() - means, -collapse.exponent)
        size = metrics.ldexp(means, -collapse.exponent).norm(dim=1, keepdim=True)
        apart = apart.norm(dim=1, keepdim=True)
        same = not ((apart > of_mean * size) & (apart * counts.sqrt() > of_one * size)).any()
    if not same:
        raise ValueError(
            "loader gave other samples at its second pass than at its first, or other random changes of them: give one without "
            "augmentation that leaves none out, or let its features be kept (keep)"
        )


def _split(batch, what: str, labelled: bool):
    """(inputs, labels) of a batch; labels None where there are none and none are asked for."""
    if isinstance(batch, Mapping):
        key = next((key for key in ("labels", "label") if key in batch), None)
        if key or not labelled:
            return {name: value for name, value in batch.items() if name != key}, batch[key] if key else None
    elif isinstance(batch, (list, tuple)):
        if len(batch) == 2:
            return batch[0], batch[1]
        if len(batch) == 1 and not labelled:
            return batch[0], None
    elif not labelled:
        return batch, None
    found = f"{len(batch)} parts" if isinstance(batch, (list, tuple)) else type(batch).__name__
    if isinstance(batch, Mapping):
        found = f"a mapping with {', '.join(map(str, batch))}"
    raise ValueError(
        f"{what} must give batches (inputs, labels), or mappings with 'labels' or 'label', got {found}"
    )


def _moved(inputs, device):
    """Inputs with all their tensors on the device; a tuple as a list."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return [_moved(value, device) for value in inputs]
    return inputs


def _fault(module, h, logits) -> str | None:
    """What keeps a layer from being a head: W h + b of its own `weight` [K, p] and `bias`, but for half precision's rounding."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or h.shape[-1] != weight.shape[1]:
        return "must be a linear layer, with a weight [K, p] for features [n, p]"
    with torch.autocast(h.device.type, enabled=False):
        h, weight = h.float(), weight.float()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.float()
        off = (logits.float() - F.linear(h, weight, bias)).norm()
        size = F.linear(h.abs(), weight.abs(), bias.abs()).norm()
    if off > 0.02 * size:  # NaN and infinity are told elsewhere
        return (
            "gives other logits than its weight and bias do (an adapter? normalised features?): merge them into one linear "
            "layer first"
        )
    return None if len(weight) > 1 else f"has {len(weight)} row; neural collapse needs K >= 2 classes"


def _first_tensor(output):
    """The output itself, or the first tensor of a tuple or mapping of several."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        output = next((value for value in output if isinstance(value, torch.Tensor)), None)
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"a watched layer gave {type(output).__name__}, which has no tensor to measure")
    return output
