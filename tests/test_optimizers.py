"""Every optimizer step by step: against torch.optim where torch has it, against the written update otherwise."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from ncutils.models import mlp
from ncutils.optimizers import NAMES, RULES, Signum, make_optimizer
from ncutils.runs import Run
from ncutils.store import Store, table
from ncutils.training import train

X, Y = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 10
LR = [0.02, 0.02, 0.02, 0.02, 0.002, 0.002, 0.002, 0.0002]


def loss_of(model):
    return F.cross_entropy(model(X.to(next(model.parameters()).dtype)), Y)


def trajectory(make, model):
    """Parameters after each step of a schedule that changes the learning rate on the way."""
    model = copy.deepcopy(model)
    optimizer = make(model.parameters())
    states = []
    for lr in LR:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return torch.stack(states)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp(2, (100, 1, 8, 8), 10)


def ours(rule, **options):
    return lambda params: make_optimizer(params, rule, lr=LR[0], **options)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(model, momentum):
    expected = trajectory(
        lambda p: torch.optim.SGD(p, LR[0], momentum, weight_decay=0.05, foreach=False), model
    )
    got = trajectory(ours("sgd", momentum=momentum, coupled_wd=0.05), model)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_an_option_of_torchs_own_rules_reaches_them(model):
    expected = trajectory(lambda p: torch.optim.SGD(p, LR[0], 0.9, nesterov=True, foreach=False), model)
    got = trajectory(ours("sgd", momentum=0.9, options=[("nesterov", True)]), model)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(got, trajectory(ours("sgd", momentum=0.9), model))
    assert ours("adam", options=[("amsgrad", True)])(model.parameters()).defaults["amsgrad"]


def test_the_rules_defaults_are_no_momentum_and_no_decay(model):
    group = Signum(model.parameters(), 0.1).param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0, 0)
    assert Signum(model.parameters(), 0.1, weight_decay=0.5).defaults["weight_decay"] == 0.5
    assert (
        ours("sgd")(model.parameters()).defaults["fused"]
        and ours("adam")(model.parameters()).defaults["fused"]
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("reference", "decay"), [(torch.optim.Adam, "coupled_wd"), (torch.optim.AdamW, "decoupled_wd")]
)
def test_adam_and_adamw_are_torchs(model, momentum, reference, decay):
    expected = trajectory(
        lambda p: reference(p, LR[0], (momentum, 0.99), 1e-6, weight_decay=0.3, foreach=False, fused=False),
        model,
    )
    got = trajectory(ours("adam", momentum=momentum, beta2=0.99, eps=1e-6, **{decay: 0.3}), model)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def written(model, rule, momentum, coupled, decoupled):
    """The update as the docstrings write it, one tensor at a time."""
    model = copy.deepcopy(model)
    buffers = [torch.zeros_like(p) for p in model.parameters()]
    states = []
    for lr in LR:
        gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
        with torch.no_grad():
            for p, g, buffer in zip(model.parameters(), gradients, buffers):
                p *= 1 - lr * decoupled
                g = g + coupled * p
                if rule == "sgd":
                    buffer.copy_(momentum * buffer + g)
                    p -= lr * buffer
                else:
                    buffer.copy_(momentum * buffer + (1 - momentum) * g)
                    p -= lr * torch.sign(buffer)
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return torch.stack(states)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rule", ["sgd", "signum"])
@pytest.mark.parametrize(("coupled", "decoupled"), [(0, 0), (0.3, 0), (0, 0.3), (0.1, 0.2)])
def test_both_decays_are_the_written_update(model, rule, momentum, coupled, decoupled):
    model = model.double()  # a rounded gradient must not decide a sign
    expected = written(model, rule, momentum, coupled, decoupled)
    got = trajectory(ours(rule, momentum=momentum, coupled_wd=coupled, decoupled_wd=decoupled), model)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_adam_without_memory_is_signgd(model):
    """beta1 = beta2 = 0, eps = 0: Adam steps along the sign, like Signum with momentum 0."""
    model = model.double()
    adam = trajectory(ours("adam", momentum=0.0, beta2=0.0, eps=0.0, coupled_wd=0.1), model)
    sign = trajectory(ours("signum", momentum=0.0, coupled_wd=0.1), model)
    # Adam leaves 0/0 where a unit is dead; the sign of 0 is 0
    assert ((adam - sign).abs() < 1e-9)[adam.isfinite()].all() and adam.isfinite().double().mean() > 0.5


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_coupled_is_decoupled_for_plain_sgd(model, decay):
    coupled = trajectory(ours("sgd", coupled_wd=decay), model)
    decoupled = trajectory(ours("sgd", decoupled_wd=decay), model)
    torch.testing.assert_close(coupled, decoupled, rtol=1e-5, atol=1e-7)


def test_decay_on_matrices_spares_biases():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    for decays in ({"coupled_wd": 0.5}, {"decoupled_wd": 0.5}):
        with torch.no_grad():
            weight.fill_(1.0), bias.fill_(1.0)
        optimizer = make_optimizer([weight, bias], "sgd", lr=0.1, decay_on="matrices", **decays)
        weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
        optimizer.step()
        assert torch.allclose(weight, torch.full((2, 2), 0.95)) and (bias == 1).all()


def test_names_are_the_six_of_the_paper():
    assert list(NAMES) == ["SGD", "SGDW", "Adam", "AdamW", "Signum", "SignumW"]


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize("options", [{"rule": "lions"}, {"rule": "sgd", "decay_on": "some"}])
def test_bad_input(options, model):
    with pytest.raises(ValueError, match="is not allowed: (use|did you mean 'lion')"):
        make_optimizer(model.parameters(), lr=0.1, **options)


def test_a_rule_without_names_trains_and_is_called_by_its_own(monkeypatch):
    """One line in RULES and nothing else; both decays, the store, the table of runs."""
    monkeypatch.setitem(
        RULES,
        "mine",
        lambda params, lr, momentum, wd, beta2, eps: torch.optim.RMSprop(params, lr, weight_decay=wd),
    )
    quick = {"rule": "mine", "epochs": 1, "width": 2, "lr": 0.001, "measure": "ends"}
    decays = [{}, {"coupled_wd": 0.1}, {"decoupled_wd": 0.1}, {"coupled_wd": 0.1, "decoupled_wd": 0.1}]
    histories = [train(Run(**quick, **decay)) for decay in decays]
    assert [h.run.optimizer for h in histories] == ["mine", "mine", "mineW", "mine+W"]
    assert len({h.final["nc0"] for h in histories}) == 4
    for history in histories:
        Store().put(history)
    assert sorted(table(Store().histories())["optimizer"]) == ["mine", "mine", "mine+W", "mineW"]


@pytest.mark.parametrize("rule", ["sgd", "adam", "signum", "lion"])
def test_a_parameter_without_a_gradient_stays(model, rule):
    """A frozen layer, or a head that took no part: neither decay shrinks it."""
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    optimizer = make_optimizer(model.parameters(), rule, lr=0.1, decoupled_wd=0.5, coupled_wd=0.5)
    loss_of(model).backward()
    optimizer.step()
    assert torch.equal(frozen, before)
    optimizer.zero_grad()
    optimizer.step()  # of nothing
    added = torch.nn.Parameter(torch.ones(3))
    added.grad = torch.zeros(3)
    optimizer.add_param_group({"params": [added]})
    optimizer.step()  # as the others decay, by one decay at least
    assert (added < 1).all()


@pytest.mark.parametrize("rule", ["sgd", "adam", "signum", "lion", "rmsprop"])
@pytest.mark.parametrize("how", [{"coupled_wd": 1.0}, {"decoupled_wd": 1.0}, {"centre_head": "gradient"}])
def test_a_closure_gives_what_gradients_at_hand_give(model, rule, how):
    ends = []
    for closed in (False, True):
        net = copy.deepcopy(model)
        optimizer = make_optimizer(net.parameters(), rule, lr=0.01, head=net.classifier.parameters(), **how)

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            return loss

        for _ in range(4):
            if closed:
                assert torch.isfinite(optimizer.step(closure))
            else:
                closure()
                optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("rule", "settings", "sentence"),
    [
        (
            "adabelief",
            {"options": {"rectify": "no"}},
            "'rectify' of rule 'adabelief' must be True or False, not text",
        ),
        ("sgd", {"options": {"nesterov": "n"}}, "'nesterov' of rule 'sgd' must be True or False, not text"),
        ("sgd", {"options": {"dampening": "1e-3"}}, "'dampening' of rule 'sgd' must be a number, not text"),
        ("sgd", {"centre_head": "steps"}, "centre_head = 'steps' is not allowed"),
        ("sgd", {"centre_head": "gradient"}, "centre_head = 'gradient' is not allowed without head"),
        ("sgd", {"decoupled_wd": -1.0}, "decoupled_wd = -1.0 is not allowed: weight decay must be 0 or more"),
        ("lion", {"coupled_wd": -1.0}, "coupled_wd = -1.0 is not allowed"),
        ("adam", {"head_coupled_wd": float("nan")}, "head_coupled_wd = nan is not allowed"),
        ("adagrad", {"momentum": 0.9}, "momentum = 0.9 is not allowed: rule 'adagrad' has none"),
        (
            "lion",
            {"options": {"weight_decay": 0.3}},
            "'weight_decay' of rule 'lion': `coupled_wd or decoupled_wd` sets it",
        ),
        (
            "lion",
            {"momentum": 0.9, "options": {"betas": (0.5, 0.99)}},
            "the first of betas must be momentum, 0.9",
        ),
        ("signum", {"momentum": 2.0}, "lr, momentum, weight_decay = 0.1, 2.0, 0.0 are not allowed"),
        ("signum", {"lr": -1.0}, "lr, momentum, weight_decay = -1.0, 0.0, 0.0 are not allowed"),
    ],
)
def test_what_an_optimizer_cannot_use_is_refused(model, rule, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_optimizer(model.parameters(), rule, **{"lr": 0.1, "options": {}} | settings)


class OfAParent(torch.optim.SGD):
    """Its step calls its parent's, as some library rules' do."""

    def step(self, closure=None):
        return super().step(closure)


def test_decay_acts_once_a_step_whatever_else_the_process_has_made(monkeypatch):
    """Torch runs an optimizer's hooks again inside a parent's step, once the parent has been used anywhere."""
    monkeypatch.setitem(RULES, "of-a-parent", lambda params, lr, *_: OfAParent(params, lr))
    ends = []
    for _ in range(2):
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.zeros(1)
        make_optimizer([weight], "of-a-parent", lr=0.1, momentum=0, decoupled_wd=1).step()
        ends.append(weight.item())
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    assert ends == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize(("rule", "torchs"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_memory_of_any_layout_takes_torchs_steps(rule, torchs):
    """Torch's fused kernels on a CPU do not look at strides."""
    x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0))

    def network():
        torch.manual_seed(0)
        return torch.nn.Conv2d(4, 6, 3, bias=False)

    def step(conv, optimizer):
        optimizer.zero_grad()
        conv(x).square().mean().backward()
        optimizer.step()

    ends = []
    for make in (
        lambda params: make_optimizer(params, rule, lr=0.1, momentum=0.9),
        lambda p: plain(torchs, p),
    ):
        conv = network()
        optimizer = make(conv.parameters())
        step(conv, optimizer)
        kept = copy.deepcopy((conv.state_dict(), optimizer.state_dict()))
        conv = network().to(memory_format=torch.channels_last)
        optimizer = make(conv.parameters())
        conv.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
        step(conv, optimizer)
        conv.weight.grad = torch.ones_like(conv.weight).contiguous() * conv.weight.detach().contiguous()
        optimizer.step()
        ends.append(conv.weight.detach().flatten())
    torch.testing.assert_close(*ends)


def plain(torchs, params):
    return torchs(params, 0.1, *([0.9] if torchs is torch.optim.SGD else [(0.9, 0.999)]), foreach=False)


@pytest.mark.parametrize("rule", ["sgd", "adam", "signum"])
def test_a_weight_that_is_a_view_is_all_that_changes(rule):
    whole = torch.zeros(2, 6)
    weight = torch.nn.Parameter(whole[:, ::2])
    optimizer = make_optimizer([weight], rule, lr=0.1, decoupled_wd=0.1)
    weight.sum().backward()
    optimizer.step()
    expected = torch.tensor([[-0.1, 0, -0.1, 0, -0.1, 0]] * 2)
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_step_that_a_scaler_skips_decays_nothing(rule):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer([weight], rule, lr=0.1, decoupled_wd=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    scaler.scale((weight * 1000).sum()).backward()
    scaler.step(optimizer)
    assert (weight == 1).all()


@pytest.mark.counts("bad inputs refused")
def test_a_rule_that_asks_again_for_gradients_is_refused():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([weight], "lbfgs", lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight * torch.tensor([1.0, 10])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="^closure is called more than once a step by this rule"):
        optimizer.step(closure)


@pytest.mark.parametrize("rule", ["sgd", "lion"])
def test_a_group_that_is_added_or_changed_has_its_decay(rule):
    bias, weight = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer(
        [bias], rule, lr=0.1, coupled_wd=0.0 if rule == "sgd" else 5.0, decay_on="matrices"
    )
    if rule == "sgd":
        optimizer.add_param_group({"params": [weight], "decoupled_wd": 5.0})
    else:
        optimizer.add_param_group({"params": [weight]})
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert (weight < 1).all() and (bias == 1).all()


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("params", "head", "sentence"),
    [
        (
            lambda m: m.named_parameters(),
            (),
            "params must be tensors, as `parameters()` gives them, got tuple",
        ),
        (
            lambda m: [{"params": m.parameters()}],
            (),
            "params must be tensors, as `parameters()` gives them, got dict",
        ),
        (lambda m: m.parameters(), ("w",), "head must be tensors"),
        (lambda m: m.parameters(), [torch.nn.Parameter(torch.ones(2))], "head must be among params"),
    ],
)
def test_what_is_no_parameter_is_refused(model, params, head, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make_optimizer(params(model), "sgd", lr=0.1, head=head, head_decoupled_wd=0.0)
