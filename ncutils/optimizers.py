"""Optimizers: one update rule, coupled decay, decoupled decay.

`SGD`/`SGDW`, `Adam`/`AdamW` and `Signum`/`SignumW` differ only in which decay is set; both may be set (Figure 7's
interpolation). Coupled decay adds wd * p to the gradient, inside the rule. Decoupled decay multiplies p by
1 - lr * wd before the rule's step, whatever the rule: a new optimizer is one more line in `RULES`. Where both are set, the
coupled decay acts on the already decayed p. Every other optimizer of torch and of pytorch-optimizer is a rule by its name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from collections.abc import Callable, Iterable

import torch


def _with_gradient(group: dict) -> list:
    return [p for p in group["params"] if p.grad is not None]


class Signum(torch.optim.Optimizer):
    """Sign of the gradient's moving average (Bernstein et al., 2018); SignGD at momentum 0.

    g = gradient + weight_decay * p;  m <- momentum m + (1 - momentum) g, m_0 = 0;  p <- p - lr sign(m), sign(0) = 0.
    """

    def __init__(self, params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise ValueError(
                f"lr, momentum, weight_decay = {lr}, {momentum}, {weight_decay} are not allowed: 0 or more, momentum under 1"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step from the gradients that the parameters hold, or that `closure`, as torch has it, leaves in them."""
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not (params := _with_gradient(group)):
                continue
            direction = torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"])
            if group["momentum"] > 0:
                for p in params:
                    if p not in self.state:
                        self.state[p]["average"] = torch.zeros_like(p)
                averages = [self.state[p]["average"] for p in params]
                torch._foreach_lerp_(averages, direction, 1 - group["momentum"])
                direction = averages
            torch._foreach_add_(params, torch._foreach_sign(direction), alpha=-group["lr"])
        return loss


def _fused(params) -> bool:
    """Torch's fused kernels: one call for all parameters instead of one each, real and without gaps in memory."""
    return all(
        p.device.type in ("cpu", "cuda")
        and p.is_floating_point()
        and torch.empty_like(p, device="meta").stride() == p.stride()
        for group in params
        for p in group["params"]
    )


def _on_gpu(params) -> bool:
    return all(p.is_cuda for group in params for p in group["params"])


RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    # v <- momentum v + g, v_0 = 0;  p <- p - lr v;  options = {"nesterov": True}: p <- p - lr (g + momentum v)
    "sgd": lambda params, lr, momentum, wd, beta2, eps, **options: torch.optim.SGD(
        params, lr, momentum, weight_decay=wd, fused=_fused(params), **options
    ),
    # Kingma and Ba (2014), beta1 = momentum
    "adam": lambda params, lr, momentum, wd, beta2, eps, **options: torch.optim.Adam(
        params, lr, (momentum, beta2), eps, wd, fused=_fused(params), capturable=_on_gpu(params), **options
    ),
    "signum": lambda params, lr, momentum, wd, beta2, eps: Signum(params, lr, momentum, weight_decay=wd),
}
OWN_RULES = dict(RULES)  # those above; a notebook may add others
_OPTIONS = {"sgd": ("dampening", "nesterov"), "adam": ("amsgrad",)}

# The paper's names: rule, and which of the two decays is set. A rule without names is called by its own.
NAMES = {
    "SGD": ("sgd", "coupled_wd"),
    "SGDW": ("sgd", "decoupled_wd"),
    "Adam": ("adam", "coupled_wd"),
    "AdamW": ("adam", "decoupled_wd"),
    "Signum": ("signum", "coupled_wd"),
    "SignumW": ("signum", "decoupled_wd"),
}
OPTIMIZERS = tuple(NAMES)
COUPLED = {name + "W": name for name, (_, decay) in NAMES.items() if decay == "coupled_wd"}  # AdamW: Adam

_WITH_DECAY = {"adamw": "adam", "sgdw": "sgd"}  # a rule and its decoupled decay in one
_OWN_DECAY = ("weight_decay", "adamw_wd", "weight_decay_1d")  # what libraries call it
_GIVEN = {"lr": "lr", "momentum": "momentum", **dict.fromkeys(_OWN_DECAY, "coupled_wd or decoupled_wd")}


def find_rule(rule: str) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer of this name, in lower case: torch's, or else that of the package pytorch-optimizer.

    "muon" and those who are built like it get a hyphen: "muon" as it is practised (hidden matrices; all else, the head
    included, by AdamW), "muon-all" with the head among the matrices. Torch's Muon takes matrices alone, so that these are
    pytorch-optimizer's. Raises ValueError for any other name.
    """
    if rule in _WITH_DECAY:
        plain = _WITH_DECAY[rule]
        raise ValueError(f"rule = {rule!r} is not allowed: it is rule {plain!r} with decoupled_wd")
    of_torch = {key.lower(): value for key, value in vars(torch.optim).items() if isinstance(value, type)}
    if rule in of_torch and rule not in ("muon", "optimizer"):
        return of_torch[rule]
    try:
        import pytorch_optimizer
    except ModuleNotFoundError:
        raise ValueError(
            f"rule = {rule!r} is not allowed: it is none of {', '.join(RULES)} and no optimizer of torch, and the package "
            "pytorch-optimizer, which may have it, is not installed: `pip install pytorch-optimizer`"
        ) from None
    supported, name = pytorch_optimizer.get_supported_optimizers(), rule.removesuffix("-all")
    if name in supported and (name == rule or _two_rules(pytorch_optimizer.load_optimizer(name))):
        return pytorch_optimizer.load_optimizer(name)
    hint = did_you_mean(rule, {*supported, *of_torch, *RULES})
    raise ValueError(
        f"rule = {rule!r} is not allowed: {hint}it must be {', '.join(map(repr, RULES))}, or the name of an optimizer "
        "of torch or of pytorch-optimizer in lower case"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest of the known names, if one is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _two_rules(optimizer: Callable) -> bool:
    """Muon and those built like it: a rule for matrices, AdamW for what is none."""
    return "adamw_lr" in inspect.signature(optimizer).parameters


def check_rule(rule: str, options: tuple, momentum: float) -> None:
    """Raises ValueError in one sentence where a Run cannot have this rule with these options (sorted pairs) and momentum.

    A rule of a library is tried on a few small tensors: what needs a closure, the model or second derivatives fails there,
    and so does what draws random numbers, which a Run could not repeat, or keeps a second copy of the weights.
    """
    _check_settings(rule, dict(options), momentum)
    if (options or rule not in RULES) and (
        fault := _fault(rule, options, momentum, RULES.get(rule), repr(options))
    ):
        raise ValueError(fault)


def _check_settings(rule: str, options: dict, momentum: float) -> None:
    """What of `check_rule` the rule's signature says."""
    settings = inspect.signature(RULES.get(rule) or find_rule(rule)).parameters
    if rule in RULES:
        allowed = _OPTIONS.get(rule, tuple(settings)[6:])
    else:
        allowed = tuple(name for name in settings if name not in ("params", "kwargs", *_GIVEN))
        if momentum and not {"momentum", "betas"} & {*settings}:
            raise ValueError(
                f"momentum = {momentum!r} is not allowed: rule {rule!r} has none, so it must be 0"
            )
    for name, value in options.items():
        if name not in allowed:
            why = f"`{_GIVEN[name]}` sets it" if name in _GIVEN else f"it has {', '.join(allowed) or 'none'}"
            raise ValueError(f"options = {options!r} is not allowed: {name!r} of rule {rule!r}: {why}")
        known = settings if name in settings else inspect.signature(find_rule(rule)).parameters
        default = known[name].default if name in known else None
        if isinstance(value, str) and isinstance(default, bool | int | float):
            kind = "True or False" if isinstance(default, bool) else "a number"
            raise ValueError(
                f"options = {options!r} is not allowed: {name!r} of rule {rule!r} must be {kind}, not text"
            )
        if name == "betas" and (not isinstance(value, tuple) or value[:1] != (momentum,)):
            raise ValueError(
                f"options = {options!r} is not allowed: the first of betas must be momentum, {momentum!r}"
            )


@functools.cache
def _fault(rule: str, options: tuple, momentum: float, of_rules: Callable | None, told: str) -> str | None:
    """Why the rule cannot be stepped, remembered; `of_rules` is what RULES has by its name, which a notebook may change, `told`
    the options as text, in which 1 is not True."""
    if hasattr(of_rules or find_rule(rule), "eval"):
        return f"rule = {rule!r} is not allowed: it keeps a second copy of the weights"
    try:
        tried = [_tried(rule, options, momentum, seed) for seed in (0, 1)]
    except Exception as error:  # a stranger's rule may fail in any way
        what = " ".join(str(error).split()) or type(error).__name__
        given = f" with options {dict(options)!r}" if options else ""
        return f"rule = {rule!r} is not allowed{given}: it cannot be stepped here ({what})"
    if not torch.equal(*tried):
        return f"rule = {rule!r} is not allowed: it draws random numbers, which a Run could not repeat"
    return None


def _tried(
    rule: str, options: tuple, momentum: float, seed: int, layout=torch.contiguous_format
) -> torch.Tensor:
    """The tensors of a small network after ten steps along the same gradients, with torch's generator at `seed`."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 1, 3, 3), (6,), (6,), (8, 6, 3, 3), (8,), (3, 8), (3,))

    def tensors():
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        return [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in drawn]

    params = [torch.nn.Parameter(t) for t in tensors()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make_optimizer(params, rule, lr=0.01, momentum=momentum, options=options, head=params[-2:])
        for _ in range(10):
            for p, gradient in zip(params, tensors()):
                p.grad = gradient
            made.step()
    return torch.cat([p.detach().flatten() for p in params])


@functools.cache
def weights_layout(
    rule: str, options: tuple, momentum: float, of_rules: Callable | None = None
) -> torch.memory_format:
    """How a rule takes a network's weights in memory: with channels last, as its images, unless it then fails, as one does that
    takes a view of them as rows (adamp, swats). `of_rules` is what RULES has by its name, which a notebook may change."""
    if rule not in OWN_RULES:  # a rule of one's own may view them so, too
        try:
            _tried(rule, options, momentum, 0, torch.channels_last)
        except Exception:  # a stranger's rule may fail in any way
            return torch.contiguous_format
    return torch.channels_last


def make_optimizer(
    params,
    rule: str,
    *,
    lr: float,
    momentum: float = 0.0,
    coupled_wd: float = 0.0,
    decoupled_wd: float = 0.0,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decay_on: str = "all",
    options: Iterable[tuple] = (),
    head: Iterable[torch.nn.Parameter] = (),
    head_coupled_wd: float | None = None,
    head_decoupled_wd: float | None = None,
    centre_head: str = "never",
) -> torch.optim.Optimizer:
    """A torch optimizer with the rule's update and the two weight decays.

    `rule` is a key of RULES, or the name of an optimizer of torch or pytorch-optimizer (`find_rule`). Such a one decays by
    this project's means, its own decay off (but for asgd's `lambd`, 1e-4); `momentum` is its momentum or first beta, and all
    else its own (`beta2` and `eps`, too) unless `options` gives it. `decay_on` is "all" or "matrices": with the latter,
    BatchNorm and bias parameters (one dimension) do not decay. `head` are the classifier's parameters among `params`, W [K, p] first; they may decay
    differently (None: as all else), and with `centre_head` the mean row of W is taken off after each "step", or off its
    "gradient" before each: there it is the rounding of a softmax near 0 and 1. Decoupled decay reads lr from the parameter
    group at each step, so schedules apply to it; as coupled decay, it leaves parameters without a gradient alone. Decays and
    centring belong to this optimizer's `step`: they are not in a copy or a pickle of it.

    Raises ValueError for a rule, options or a momentum as `check_rule` does, a negative decay, and other names than these.
    """
    if decay_on not in ("all", "matrices"):
        raise ValueError(f"decay_on = {decay_on!r} is not allowed: use 'all' or 'matrices'")
    params, head, options = list(params), list(head), dict(options)
    for name, given in (("params", params), ("head", head)):
        if wrong := [p for p in given if not isinstance(p, torch.Tensor)]:
            raise ValueError(
                f"{name} must be tensors, as `parameters()` gives them, got {type(wrong[0]).__name__}"
            )
    if not {*head} <= {*params}:  # tensors are hashed by what they are, not by their values
        raise ValueError("head must be among params")
    if centre_head not in ("never", "step", "gradient"):
        raise ValueError(f"centre_head = {centre_head!r} is not allowed: use 'never', 'step' or 'gradient'")
    if centre_head != "never" and not head:
        raise ValueError(f"centre_head = {centre_head!r} is not allowed without head")
    of_all, of_head = (coupled_wd, decoupled_wd), (head_coupled_wd, head_decoupled_wd)
    names = "coupled_wd", "decoupled_wd", "head_coupled_wd", "head_decoupled_wd"
    for name, decay in zip(names, (*of_all, *of_head)):
        if decay is not None and not decay >= 0:
            raise ValueError(f"{name} = {decay} is not allowed: weight decay must be 0 or more")
    _check_settings(rule, options, momentum)
    build = RULES.get(rule) or find_rule(rule)
    two_rules = rule not in RULES and _two_rules(build)
    if two_rules and not lr > 0:
        raise ValueError(
            f"lr = {lr} is not allowed: rule {rule!r} gives AdamW its share of it, so it must be greater than 0"
        )
    of_head = tuple(usual if own is None else own for own, usual in zip(of_head, of_all))
    no_matrices = set() if rule.endswith("-all") else {*head}
    groups = _groups(params, {*head}, of_all, of_head, decay_on, two_rules, no_matrices)
    if rule in RULES:
        optimizer = build(groups, lr, momentum, coupled_wd, beta2, eps, **options)
        for group in optimizer.param_groups:  # a share of lr that the rule takes stays its share
            if lr and group["lr"] != lr:
                group.setdefault("lr_share", group["lr"] / lr)
    else:
        optimizer = _of_library(build, groups, lr, momentum, options)
    for name, decay in zip(names, of_all):  # of groups that are added
        optimizer.defaults.setdefault(name, decay)
    before: list[Callable] = [_lay_out, _decay_decoupled]
    after: list[Callable] = []
    if centre_head == "gradient":
        before.append(lambda _: _centre(head[0].grad))
    if rule not in RULES:
        before.append(_decay_coupled)
    if centre_head == "step":
        after.append(lambda _: _centre(head[0]))
    optimizer.step = types.MethodType(_step(optimizer.step, before, after), optimizer)  # type: ignore[method-assign]
    return optimizer


def _groups(params, head, decays, head_decays, decay_on, two_rules, no_matrices) -> list[dict]:
    """Parameters by what is done with them, in the model's order; one group where all are alike. Decays are pairs, the coupled
    one first; of `two_rules`, Muon's is for matrices, but for those that are to be none."""
    parts: dict[tuple, list] = {}
    for p in params:
        decays_of_p = head_decays if p in head else decays
        if decay_on == "matrices" and p.ndim < 2:
            decays_of_p = 0.0, 0.0
        as_matrix = two_rules and p.ndim >= 2 and p not in no_matrices
        parts.setdefault((*decays_of_p, as_matrix), []).append(p)
    return [
        {"params": members, "weight_decay": coupled, "decoupled_wd": decoupled}
        | ({"use_muon": as_matrix} if two_rules else {})
        for (coupled, decoupled, as_matrix), members in parts.items()
    ]


def _of_library(build, groups, lr, momentum, options) -> torch.optim.Optimizer:
    """The optimizer of torch or pytorch-optimizer, its own decay off; its groups keep the coupled decay for `_decay_coupled`."""
    settings = inspect.signature(build).parameters
    options |= {name: 0.0 for name in _OWN_DECAY if name in settings}
    if "momentum" in settings:
        options["momentum"] = momentum
    elif "betas" in settings:
        options.setdefault("betas", (momentum, *settings["betas"].default[1:]))
    for group in groups:
        group |= {"coupled_wd": group["weight_decay"], "weight_decay": 0.0}
        if group.get("use_muon") is False:  # AdamW's share
            group["lr"] = options.get("adamw_lr", settings["adamw_lr"].default)
            group["lr_share"] = group["lr"] / lr
    return build(groups, lr=lr, **options)


def _step(step, before, after):
    """`step` with calls before and after it. Torch's hooks would come again inside a step that calls its parent class's."""

    def whole(optimizer, closure=None):
        loss = None
        if closure is not None:
            # first: the gradients that it leaves are those that decay and centring act on
            with torch.enable_grad():
                loss = closure()
        for call in before:
            call(optimizer)
        step(*(() if closure is None else (_once(loss),)))
        for call in after:
            call(optimizer)
        return loss

    return whole


def _once(loss):
    """A closure for a rule that asks for the loss; one that asks again wants gradients elsewhere, which are not to be had."""
    given = [loss]

    def closure():
        if given:
            return given.pop()
        raise ValueError("closure is called more than once a step by this rule, which is not allowed here")

    return closure


@torch.no_grad()
def _lay_out(optimizer) -> None:
    """Torch's fused kernels on a CPU read gradients and state as if they lay in memory as the parameter does."""
    for group in optimizer.param_groups:
        for p in _with_gradient(group) if group.get("fused") else ():
            if p.grad.layout != torch.strided:
                continue
            strides, state = p.stride(), optimizer.state.get(p, {})
            if p.grad.stride() != strides:
                p.grad = torch.empty_like(p).copy_(p.grad)
            for name, value in state.items():  # "step", a number, is a tensor, too
                if value is not None and value.ndim and value.stride() != strides:
                    state[name] = torch.empty_like(p).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rule's learning rate from the next step on; of groups with a share of it, as AdamW's of "muon", in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1)


@torch.no_grad()
def _decay_decoupled(optimizer) -> None:
    skipped = getattr(optimizer, "found_inf", None)  # of a GradScaler: fused kernels then take no step
    if skipped is not None and skipped.item():
        return
    for group in optimizer.param_groups:
        if group["decoupled_wd"] and (params := _with_gradient(group)):
            torch._foreach_mul_(params, 1 - group["lr"] * group["decoupled_wd"])


@torch.no_grad()
def _decay_coupled(optimizer) -> None:
    """What the rules of RULES do themselves."""
    for group in optimizer.param_groups:
        if group["coupled_wd"] and (params := _with_gradient(group)):
            torch._foreach_add_([p.grad for p in params], params, alpha=group["coupled_wd"])


@torch.no_grad()
def _centre(weight: torch.Tensor | None) -> None:
    if weight is not None:
        weight -= weight.mean(0)
