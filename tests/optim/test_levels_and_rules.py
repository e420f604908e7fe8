"""Scale laws, scopes, layers and units, rate optimizers: what the levels and rules promise."""

import copy
import math
import pickle

import pytest
import torch
from tests.optim.models import flat, loss_of, network, train
from tests.optim.optimizers import hyper

import metastep.optim as ours

ALL = ("global", "layer", "unit", "parameter")


def leaf(values, dtype=torch.float64):
    return torch.nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())


def give(parameter, gradient):
    parameter.grad = None if gradient is None else torch.as_tensor(gradient, dtype=parameter.dtype).clone()


@pytest.mark.parametrize("rule", ["exponentiated", "cosine"])
@pytest.mark.parametrize(("name", "power"), [("SGD", -1), ("Adam", 0)])
@pytest.mark.parametrize("c", [1e-4, 7.0, 1e4])
def test_cosine_rules_do_not_see_the_scale_of_the_loss(rule, name, power, c):
    """f -> c f: SGD's right rate goes with 1/c, Adam's stays; the same kappa gives the same relative trajectory."""
    ratios = []
    for scale in (1.0, c):
        model = network()
        lr = 0.02 * scale**power
        extra = {"eps": 0.0} if name == "Adam" else {"momentum": 0.9}
        optimizer = hyper(name)(model.parameters(), lr=lr, levels=("global", "layer", "unit"), rule=rule, **extra)
        for step in range(10):
            optimizer.zero_grad()
            (loss_of(model, step) * scale).backward()
            optimizer.step()
        rates = optimizer.rates()[0]
        values = [rates["global"].reshape(1), *(v.reshape(-1) for j in ("layer", "unit") for v in rates[j].values())]
        ratios.append(torch.cat(values) / lr)
        weights = torch.stack(list(rates["weights"].values()))
        ratios[-1] = torch.cat([ratios[-1], weights])
    torch.testing.assert_close(ratios[0], ratios[1], rtol=1e-9, atol=0)
    assert float((ratios[0][:3] - 1).abs().max()) > 1e-4


@pytest.mark.parametrize(("name", "power"), [("SGD", -1), ("Adam", 0)])
def test_additive_rates_follow_only_where_beta_is_scaled_too(name, power):
    c, betas = 7.0, {"SGD": 1e-3, "Adam": 1e-5}

    def run(scale, beta):
        model = network()
        lr = 0.02 * scale**power
        extra = {"eps": 0.0} if name == "Adam" else {}
        optimizer = hyper(name)(model.parameters(), lr=lr, levels=("layer",), rule="additive", hyper_lr=beta, **extra)
        for step in range(10):
            optimizer.zero_grad()
            (loss_of(model, step) * scale).backward()
            optimizer.step()
        return flat(optimizer.rates()[0]["layer"].values()) / lr

    law = -3 if name == "SGD" else -1
    reference = run(1.0, betas[name])
    torch.testing.assert_close(run(c, betas[name] * c**law), reference, rtol=1e-9, atol=0)
    assert float((run(c, betas[name]) - reference).abs().max()) > 1e-4


def test_one_rate_for_all_groups_keeps_their_ratios_even_where_a_group_rests():
    for rule in ("exponentiated", "additive", "log"):
        a, b, c = leaf([1.0, 2.0]), leaf([3.0]), leaf([1.0])
        optimizer = ours.HyperSGD(
            [{"params": [a]}, {"params": [b], "lr": 0.01}, {"params": [c], "lr": 0.5}],
            lr=0.1, levels=("global",), scope="all", rule=rule, hyper_lr=1e-2,
        )  # fmt: skip
        for step in range(5):
            give(a, [1.0, 1.0])
            give(b, [1.0] if step % 2 == 0 else None)
            give(c, [1.0] if step == 3 else None)
            optimizer.step()
        first, second, third = (float(group["global"]) for group in optimizer.rates())
        assert first != 0.1
        assert second / first == pytest.approx(0.1, rel=1e-12)
        assert third / first == pytest.approx(5.0, rel=1e-12)


def test_the_shared_hypergradient_is_weighted_with_the_ratios():
    """theta -= m_k alpha u: h_g = -sum_k m_k <g, u>_k."""
    a, b = leaf([0.0]), leaf([0.0])
    optimizer = ours.HyperSGD(
        [{"params": [a]}, {"params": [b], "lr": 0.3}],
        lr=0.1,
        levels=("global",),
        scope="all",
        rule="additive",
        hyper_lr=1e-2,
        safeguard=False,
    )
    for _ in range(2):
        give(a, [2.0]), give(b, [5.0])
        optimizer.step()
    assert float(optimizer.rates()[0]["global"]) == pytest.approx(0.1 + 1e-2 * (4.0 + 3 * 25.0), rel=1e-12)


def test_layers_can_be_modules_and_biases_can_share_the_rates_of_their_rows():
    model = network()
    optimizer = ours.HyperSGD(
        model.named_parameters(), lr=0.02, levels=("layer", "unit"), rule="additive", hyper_lr=1e-3,
        layers="module", tie_bias=True, unit_dims={"2.weight": 1}, scaled=False, weight_lr=0.0,
        safeguard=False,
    )  # fmt: skip
    train(model, optimizer, 1)
    old = {name: p.grad.clone() for name, p in model.named_parameters()}
    train(model, optimizer, 1, start=1)
    rates = optimizer.rates()[0]
    for k in "0257":
        s = {n: old[f"{k}.{n}"] * dict(model.named_parameters())[f"{k}.{n}"].grad for n in ("weight", "bias")}
        expected = 0.02 + 1e-3 * float(s["weight"].sum() + s["bias"].sum())
        assert float(rates["layer"][f"{k}.weight"]) == pytest.approx(expected, rel=1e-12)
        assert torch.equal(rates["layer"][f"{k}.weight"], rates["layer"][f"{k}.bias"])
        units = s["weight"].transpose(0, 1) if k == "2" else s["weight"]
        tied = 0.02 + 1e-3 * (units.flatten(1).sum(1) + s["bias"])
        torch.testing.assert_close(rates["unit"][f"{k}.weight"], tied, rtol=1e-12, atol=0)
        torch.testing.assert_close(rates["unit"][f"{k}.bias"], tied, rtol=1e-12, atol=0)


def test_units_of_recurrent_attention_and_embedding_weights():
    modules = torch.nn.ModuleDict(
        {"rnn": torch.nn.LSTM(3, 4), "mix": torch.nn.MultiheadAttention(4, 2), "look": torch.nn.Embedding(7, 4)}
    )
    optimizer = ours.HyperSGD(
        modules.named_parameters(), lr=0.02, levels=("unit",), unit_dims={"look.weight": None}, tie_bias=True
    )
    out, _ = modules["rnn"](modules["look"](torch.tensor([[1], [2]]))[..., :3])
    modules["mix"](out, out, out)[0].square().sum().backward()
    optimizer.step()
    shapes = {name: tuple(value.shape) for name, value in optimizer.rates()[0]["unit"].items()}
    assert shapes["rnn.weight_ih_l0"] == shapes["rnn.bias_ih_l0"] == (16,)
    assert shapes["mix.in_proj_weight"] == shapes["mix.in_proj_bias"] == (12,)
    assert shapes["look.weight"] == (1,)
    rows = ours.HyperSGD(modules.named_parameters(), lr=0.02, levels=("unit",), hyper_lr=0.05, safeguard=False)
    for tokens in ([1, 2], [1, 3]):
        rows.zero_grad()
        modules["look"](torch.tensor(tokens)).square().sum().backward()
        rows.step()
    moved = rows.rates()[0]["unit"]["look.weight"] != torch.tensor(0.02)
    assert moved.tolist() == [False, True, False, False, False, False, False]


@pytest.mark.parametrize("combine", ["project", "softmax", "divide"])
def test_equal_rates_at_all_levels_leave_exact_combinations_where_they_are(combine):
    model = network()
    optimizer = ours.HyperSGD(
        model.parameters(), lr=0.02, levels=("global", "layer", "unit"), rule="additive", hyper_lr=0.0,
        combine=combine, weight_lr=0.5, weights={"global": 0.2, "layer": 0.5, "unit": 0.3},
    )  # fmt: skip
    train(model, optimizer, 1)
    optimizer.param_groups[0]["hyper_lr"] = 1e-30  # adapting, yet standing still
    train(model, optimizer, 3, start=1)
    weights = torch.stack(list(optimizer.rates()[0]["weights"].values()))
    assert torch.allclose(weights, torch.tensor([0.2, 0.5, 0.3], dtype=weights.dtype), atol=1e-14) == (
        combine != "divide"
    )


def test_rates_moved_by_an_optimizer_are_what_that_optimizer_does():
    """Adam on the log rates: the reference is Adam fed with the hypergradient of the logarithm by hand."""
    model = network()
    optimizer = ours.HyperSGD(
        model.parameters(),
        lr=0.02,
        momentum=0.9,
        levels=("layer",),
        rule=lambda rates: torch.optim.Adam(rates, lr=0.01),
        safeguard=False,
    )
    logs = torch.zeros(8, dtype=torch.float64)
    by_hand = torch.optim.Adam([logs], lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step > 0:
            dots = [(p.grad * optimizer.state[p]["momentum_buffer"]).sum() for p in model.parameters()]
            logs.grad = -0.02 * logs.exp() * torch.stack(dots)
            by_hand.step()
        optimizer.step()
    torch.testing.assert_close(flat(optimizer.rates()[0]["layer"].values()), 0.02 * logs.exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("level", ["global", "layer", "parameter"])
def test_online_scaling_is_adagrad_over_hypergradients_that_are_normalised(level):
    model = network()
    optimizer = ours.HyperSGD(
        model.parameters(), lr=0.02, momentum=0.9, levels=(level,), rule="hdm", hyper_lr=0.1, safeguard=False
    )
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    logs = squares = torch.zeros(sum(sizes) if level == "parameter" else 8 if level == "layer" else 1).double()
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step > 0:
            u = flat(optimizer.state[p]["momentum_buffer"] for p in parameters)
            products = flat(p.grad for p in parameters) * u
            parts = products.split({"parameter": 1, "layer": sizes, "global": sum(sizes)}[level])
            slopes = -0.02 * logs.exp() * torch.stack([part.sum() for part in parts]) / u.square().sum()
            squares = squares + slopes.square()
            logs = logs - 0.1 * slopes / squares.sqrt()
        optimizer.step()
    rates = optimizer.rates()[0][level]
    found = rates if level == "global" else flat(rates.values())
    torch.testing.assert_close(found.reshape(-1), 0.02 * logs.exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_online_scaling_does_not_see_the_scale_of_the_loss(scale):
    ends = []
    for factor in (1.0, scale):
        model = network()
        optimizer = ours.HyperSGD(model.parameters(), lr=0.02 / factor, levels=ALL, rule="hdm")
        for step in range(6):
            optimizer.zero_grad()
            (factor * loss_of(model, step)).backward()
            optimizer.step()
        ends.append(flat(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tiny", [1e-11, 1e-18, 1e-30])
def test_online_scaling_moves_no_rate_by_more_than_eta_at_first(tiny):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.HyperSGD([weight], lr=0.01, levels=("parameter",), rule="hdm", safeguard=False)
    for _ in range(2):
        weight.grad = torch.tensor([1.0, tiny])
        optimizer.step()
    (rates,) = optimizer.rates()[0]["parameter"].values()
    assert rates[0] == pytest.approx(0.01 * math.exp(0.3))
    assert 0.01 <= rates[1] <= rates[0] * (1 + 1e-6)


def test_online_scaling_takes_the_hyper_rate_of_each_group_and_level():
    first, second = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "hyper_lr": {"global": 0.02, "layer": 0.0}}]
    optimizer = ours.HyperSGD(groups, lr=0.01, rule="hdm", hyper_lr=0.1, safeguard=False)
    for _ in range(2):
        for weight in (first, second):
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    one, two = optimizer.rates()
    assert float(one["global"]) == pytest.approx(0.01 * math.exp(0.1))
    assert float(two["global"]) == pytest.approx(0.01 * math.exp(0.02))
    assert [float(rate) for rate in two["layer"].values()] == [0.01]


def test_without_a_hyper_rate_online_scaling_is_the_base_optimizer():
    ours_model, base_model = network(), network()
    train(ours_model, ours.HyperSGD(ours_model.parameters(), lr=0.02, rule="hdm", hyper_lr=0.0), 4)
    train(base_model, torch.optim.SGD(base_model.parameters(), lr=0.02), 4)
    assert torch.equal(flat(ours_model.parameters()), flat(base_model.parameters()))


def saved_twice(run):
    model, optimizer = run
    again = ours.HyperAdam(model.parameters(), lr=0.02, levels=ALL, rule="hdm")
    again.load_state_dict(optimizer.state_dict())
    third = ours.HyperAdam(model.parameters(), lr=0.02, levels=ALL, rule="hdm")
    third.load_state_dict(again.state_dict())
    return model, third


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run)), saved_twice])
def test_a_copy_of_a_run_of_online_scaling_goes_on_bit_for_bit(copied):
    whole, part = network(), network()
    train(whole, ours.HyperAdam(whole.parameters(), lr=0.02, levels=ALL, rule="hdm"), 6)
    optimizer = ours.HyperAdam(part.parameters(), lr=0.02, levels=ALL, rule="hdm")
    train(part, optimizer, 3)
    part, optimizer = copied((part, optimizer))
    train(part, optimizer, 3, start=3)
    assert torch.equal(flat(whole.parameters()), flat(part.parameters()))


def test_another_rate_optimizer_than_that_of_the_saved_run_is_refused():
    model = network()
    optimizer = ours.HyperSGD(model.parameters(), lr=0.02, rule=lambda rates: torch.optim.Adam(rates, lr=0.01))
    train(model, optimizer, 3)
    other = ours.HyperSGD(model.parameters(), lr=0.02, rule="hdm")
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="rule must be the one of the saved run, got one that makes Adagrad"):
        train(model, other, 2)


@pytest.mark.parametrize(("given", "message"), [("hmd", "rule must be one of .*hdm, got 'hmd'")])
def test_a_rule_that_there_is_not_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        ours.HyperSGD(network().parameters(), lr=0.02, rule=given)


@pytest.mark.parametrize("rule", ["hdm", lambda rates: torch.optim.Adam(rates, lr=0.01)])
def test_a_run_of_a_rate_optimizer_resumes_to_the_bit_and_stays_bounded(rule):
    def make(model):
        return ours.HyperAdam(model.parameters(), lr=0.02, levels=ALL, max_lr=0.0205, rule=rule)

    whole, part = network(), network()
    one, two = make(whole), make(part)
    train(whole, one, 6)
    train(part, two, 3)
    rest = network(seed=4)
    rest.load_state_dict(part.state_dict())
    three = make(rest)
    three.load_state_dict(two.state_dict())
    train(rest, three, 3, start=3)
    assert torch.equal(flat(whole.parameters()), flat(rest.parameters()))
    rates = one.rates()[0]
    assert all((value <= 0.0205).all() for level in ALL[1:] for value in rates[level].values())
    assert int(rates["clipped"]["parameter"]) > 0


def test_state_moved_away_and_back_is_found_again():
    model = network()
    optimizer = ours.HyperAdam(model.parameters(), lr=0.02, levels=ALL)
    other = network()
    reference = ours.HyperAdam(other.parameters(), lr=0.02, levels=ALL)
    for step in range(5):
        train(model, optimizer, 1, start=step)
        train(other, reference, 1, start=step)
        for state in optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    state[key] = value.clone()
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("levels", [("global", "layer", "unit"), ("global",)])
def test_momentum_and_adam_keep_no_tensor_of_a_parameters_size_beside_torchs(name, levels):
    model, plain = network(), network()
    extra = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = hyper(name)(model.parameters(), lr=0.02, levels=levels, **extra)
    reference = getattr(torch.optim, name)(plain.parameters(), lr=0.02, **extra)
    train(model, optimizer, 3)
    train(plain, reference, 3)

    def large(o, p):
        return {key for key, value in o.state[p].items() if torch.is_tensor(value) and value.numel() == p.numel()}

    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        if p.dim() > 1:
            assert large(optimizer, p) == large(reference, q)


def test_momentum_may_be_switched_on_and_off_on_the_way():
    model = network()
    optimizer = ours.HyperSGD(model.parameters(), lr=0.02, levels=ALL)
    for step, momentum in enumerate((0.0, 0.0, 0.9, 0.9, 0.0, 0.0)):
        optimizer.param_groups[0]["momentum"] = momentum
        train(model, optimizer, 1, start=step)
    assert flat(model.parameters()).isfinite().all()
    assert float(optimizer.rates()[0]["global"]) != 0.02


def test_a_rate_that_starts_at_zero_waits_until_it_is_set():
    model = network()
    optimizer = ours.HyperSGD(model.parameters(), lr=0.0)
    start = flat(model.parameters())
    train(model, optimizer, 3)
    assert torch.equal(flat(model.parameters()), start)
    optimizer.param_groups[0]["lr"] = 0.02
    train(model, optimizer, 3, start=3)
    assert float(optimizer.rates()[0]["global"]) != 0.02
    assert not torch.equal(flat(model.parameters()), start)
