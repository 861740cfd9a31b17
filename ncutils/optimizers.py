"""Optimizers: one update rule, coupled decay, decoupled decay.

`SGD`/`SGDW`, `Adam`/`AdamW` and `Signum`/`SignumW` differ only in which decay is set; both may be set (Figure 7's
interpolation). Coupled decay adds wd * p to the gradient, inside the rule. Decoupled decay multiplies p by
1 - lr * wd before the rule's step, whatever the rule: a new optimizer is one more line in `RULES`. Where both are set, the
coupled decay acts on the already decayed p.
"""

from __future__ import annotations

import torch


class Signum(torch.optim.Optimizer):
    """Sign of the gradient's moving average (Bernstein et al., 2018); SignGD at momentum 0.

    g = gradient + weight_decay * p;  m <- momentum m + (1 - momentum) g, m_0 = 0;  p <- p - lr sign(m), sign(0) = 0.
    """

    def __init__(self, params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """One step from the gradients that the parameters hold."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
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


def _fused(params) -> bool:
    """Torch's fused kernels: one call for all parameters instead of one each."""
    return all(p.device.type in ("cpu", "cuda") for group in params for p in group["params"])


def _on_gpu(params) -> bool:
    return all(p.is_cuda for group in params for p in group["params"])


RULES = {
    # v <- momentum v + g, v_0 = 0;  p <- p - lr v
    "sgd": lambda params, lr, momentum, wd, beta2, eps: torch.optim.SGD(
        params, lr, momentum, weight_decay=wd, fused=_fused(params)
    ),
    # Kingma and Ba (2014), beta1 = momentum
    "adam": lambda params, lr, momentum, wd, beta2, eps: torch.optim.Adam(
        params, lr, (momentum, beta2), eps, weight_decay=wd, fused=_fused(params), capturable=_on_gpu(params)
    ),
    "signum": lambda params, lr, momentum, wd, beta2, eps: Signum(params, lr, momentum, weight_decay=wd),
}

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
) -> torch.optim.Optimizer:
    """A torch optimizer with the rule's update and the two weight decays.

    `rule` is a key of RULES. `decay_on` is "all" or "matrices": with the latter, BatchNorm and bias parameters (one
    dimension) do not decay. Decoupled decay reads lr from the parameter group at each step, so schedules apply to it.
    """
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r} is not allowed: use one of {', '.join(RULES)}")
    if decay_on not in ("all", "matrices"):
        raise ValueError(f"decay_on = {decay_on!r} is not allowed: use 'all' or 'matrices'")
    params = list(params)
    exempt = [p for p in params if decay_on == "matrices" and p.ndim < 2]
    decayed = [p for p in params if decay_on == "all" or p.ndim >= 2]
    groups = [{"params": decayed, "decoupled_wd": decoupled_wd}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0, "decoupled_wd": 0.0})
    optimizer = RULES[rule](groups, lr, momentum, coupled_wd, beta2, eps)
    optimizer.register_step_pre_hook(_decay_decoupled)
    return optimizer


@torch.no_grad()
def _decay_decoupled(optimizer, args, kwargs) -> None:
    for group in optimizer.param_groups:
        if group["decoupled_wd"]:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decoupled_wd"])
