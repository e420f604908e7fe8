"""What happens at the edges: first steps, absent gradients, odd tensors, odd numbers."""

import math

import pytest
import torch
from tests.optim.models import flat, loss_of, network, train
from tests.optim.optimizers import hyper
from tests.optim.optimizers import registered as every

import metastep.optim as ours

ALL = ("global", "layer", "unit", "parameter")


def leaf(values, dtype=torch.float64):
    return torch.nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())


def give(parameter, gradient):
    parameter.grad = None if gradient is None else torch.as_tensor(gradient, dtype=parameter.dtype).clone()


@every
def test_the_first_step_moves_no_rate(name):
    model = network()
    optimizer = hyper(name)(model.parameters(), lr=0.02, levels=ALL, safeguard=False)
    train(model, optimizer, 1)
    rates = optimizer.rates()[0]
    assert float(rates["global"]) == 0.02
    assert all((value == 0.02).all() for level in ALL[1:] for value in rates[level].values())
    assert rates["alignment"] == {}


def test_a_rate_optimizer_is_not_called_in_the_first_step():
    made = []

    def factory(rates):
        made.append(torch.optim.Adam(rates, lr=0.01))
        return made[-1]

    model = network()
    optimizer = ours.HyperSGD(model.parameters(), lr=0.02, rule=factory)
    train(model, optimizer, 1)
    assert made == []
    train(model, optimizer, 1, start=1)
    assert all(float(state["step"]) == 1 for state in made[0].state.values())


def test_a_tensor_without_gradient_keeps_its_own_clock():
    """Its rate answers to the gradient that comes next, the global rate only to what it moved in the step before."""
    beta, u = 1e-2, {"a": [1.0, 2.0], "b": [3.0]}
    a, b = leaf([0.0, 0.0]), leaf([0.0])
    optimizer = ours.HyperSGD(
        [("a", a), ("b", b)],
        lr=0.1,
        levels=("global", "layer"),
        rule="additive",
        hyper_lr=beta,
        scaled=False,
        weight_lr=0.0,
        safeguard=False,
    )
    give(a, u["a"]), give(b, u["b"])
    optimizer.step()
    state = {key: torch.as_tensor(value).clone() for key, value in optimizer.state[b].items() if "layer" in key}
    give(a, [0.5, 0.5]), give(b, None)
    stopped = b.detach().clone()
    optimizer.step()
    assert torch.equal(b, stopped)
    assert all(torch.equal(optimizer.state[b][key], value) for key, value in state.items())
    shared = 0.1 + beta * 1.5
    assert float(optimizer.rates()[0]["global"]) == pytest.approx(shared, abs=1e-15)
    give(a, [1.0, 0.0]), give(b, [2.0])
    optimizer.step()
    rates = optimizer.rates()[0]
    assert float(rates["layer"]["b"]) == pytest.approx(0.1 + beta * 6.0, abs=1e-15)  # <2, 3> of two steps ago
    assert float(rates["global"]) == pytest.approx(shared + beta * 0.5, abs=1e-15)  # a alone: <(1, 0), (0.5, 0.5)>


@every
def test_frozen_parameters_have_no_state_and_late_ones_join(name):
    model = network()
    frozen = model[0].weight.requires_grad_(False)
    late = model[7].weight
    optimizer = hyper(name)(model.named_parameters(), lr=0.02, levels=ALL)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step < 3:
            late.grad = None
        optimizer.step()
    assert frozen not in optimizer.state
    assert "0.weight" not in optimizer.rates()[0]["combined"]
    assert float(optimizer.state[late]["step"]) == 3
    assert float(optimizer.state[model[5].weight]["step"]) == 6
    assert float(optimizer.rates()[0]["layer"]["7.weight"]) != 0.02


def test_clipped_gradients_move_the_rates_by_the_clip_coefficient_times_the_exact_derivative():
    beta, clip = 1e-3, 0.01
    models = network(), network()
    moved = []
    for model, clipped in zip(models, (False, True), strict=True):
        optimizer = ours.HyperSGD(
            model.parameters(), lr=0.02, levels=("global",), rule="additive", hyper_lr=beta, safeguard=False
        )
        train(model, optimizer, 1)
        optimizer.zero_grad()
        loss_of(model, 1).backward()
        coefficient = 1.0
        if clipped:
            coefficient = clip / float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
        optimizer.step()
        moved.append((float(optimizer.rates()[0]["global"]) - 0.02) / coefficient)
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)
    assert moved[0] != 0


@every
def test_complex_parameters_are_pairs_of_real_ones(name):
    z = torch.nn.Parameter(torch.tensor([[1 + 2j, -1j], [0.5 + 0j, 2 - 1j]], dtype=torch.complex128))
    x = torch.nn.Parameter(torch.view_as_real(z.detach()).clone())
    pair = [hyper(name)([p], lr=0.05, levels=ALL, hyper_lr=0.05) for p in (z, x)]
    target = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        for optimizer in pair:
            optimizer.zero_grad()
        (torch.view_as_real(z) - target).square().sum().backward()
        (x - target).square().sum().backward()
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(z.detach()), x.detach(), rtol=0, atol=1e-14)
    assert float(pair[0].rates()[0]["layer"]["0"]) == pytest.approx(float(pair[1].rates()[0]["layer"]["0"]), abs=1e-15)
    assert float(pair[0].rates()[0]["layer"]["0"]) != 0.05


@every
def test_sparse_gradients_are_refused_while_rates_adapt(name):
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = hyper(name)(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*sparse=False"):
        optimizer.step()
    assert not optimizer.state


@every
def test_bfloat16_parameters_have_float32_rates(name):
    model = network(torch.bfloat16)
    optimizer = hyper(name)(model.parameters(), lr=0.02, levels=ALL, hyper_lr=1e-4, safeguard=False)
    train(model, optimizer, 4, dtype=torch.bfloat16)
    for state in optimizer.state.values():
        assert all(value.dtype == torch.float32 for key, value in state.items() if key.endswith("_deviation"))
    ratio = float(optimizer.rates()[0]["layer"]["0"]) / 0.02 - 1
    assert 0 < abs(ratio) < 2**-9, "the rate moved by less than bfloat16 could show"


@pytest.mark.parametrize("level", ALL)
def test_increments_below_half_an_ulp_of_the_rate_are_not_lost(level):
    """1000 steps of 5e-11 on a rate of 1e-3 in float32, where half an ulp is 5.8e-11: the rate itself would stay."""
    weight = leaf([1.0], torch.float32)
    optimizer = ours.HyperSGD([weight], lr=1e-3, levels=(level,), rule="additive", hyper_lr=1e-8, safeguard=False)
    for _ in range(1001):
        give(weight, [math.sqrt(5e-3)])
        optimizer.step()
    deviation = optimizer.state[weight][f"{level}_deviation"]
    assert float(deviation) == pytest.approx(5e-8, rel=1e-3)


@every
@pytest.mark.parametrize("level", ["layer", "unit", "parameter"])
def test_memory_formats_do_not_matter(name, level):
    nets = [torch.nn.Conv2d(3, 4, 2).double() for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    nets[1].to(memory_format=torch.channels_last)
    strange = torch.empty(2, 2, 3, 4, dtype=torch.float64).permute(3, 2, 0, 1)
    nets[2].weight = torch.nn.Parameter(strange.copy_(nets[0].weight.detach()))
    assert not nets[1].weight.is_contiguous()
    results = []
    for net in nets:
        optimizer = hyper(name)(net.parameters(), lr=0.02, levels=(level,), hyper_lr=0.05)
        for step in range(5):
            optimizer.zero_grad()
            x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            net(x).square().mean().backward()
            optimizer.step()
        results.append(flat(net.parameters()))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-13)


@every
@pytest.mark.parametrize("levels", [ALL, ("global",), ("unit",)])
def test_scalars_and_empty_tensors_are_parameters_too(name, levels):
    parameters = [leaf(2.0), leaf(torch.zeros(0)), leaf(torch.zeros(0, 3)), leaf(torch.zeros(3, 0)), leaf([[1.0]])]
    optimizer = hyper(name)(parameters, lr=0.02, levels=levels, hyper_lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        sum((p - 1).square().sum() for p in parameters).backward()
        optimizer.step()
    assert float(parameters[0].detach()) < 2.0
    assert all(p.isfinite().all() for p in parameters)
    optimizer.describe()


def test_only_empty_tensors_are_no_trouble():
    empty = leaf(torch.zeros(0, 3))
    optimizer = ours.HyperAdam([empty], lr=0.02, levels=ALL, safeguard=False)
    for _ in range(3):
        give(empty, torch.zeros(0, 3))
        optimizer.step()
    assert float(optimizer.rates()[0]["global"]) == 0.02


def test_tied_weights_count_once_with_their_whole_gradient():
    torch.manual_seed(0)
    tied = torch.nn.Linear(3, 3, bias=False).double()
    optimizer = ours.HyperSGD(
        tied.parameters(), lr=0.02, levels=("layer",), rule="additive", hyper_lr=1e-3, safeguard=False
    )
    gradients = []
    for step in range(2):
        optimizer.zero_grad()
        x = torch.ones(2, 3, dtype=torch.float64) * (step + 1)
        tied(tied(x)).square().sum().backward()
        gradients.append(tied.weight.grad.clone())
        optimizer.step()
    expected = 0.02 + 1e-3 * float((gradients[0] * gradients[1]).sum())
    assert float(optimizer.rates()[0]["layer"]["0"]) == pytest.approx(expected, rel=1e-12)


@every
def test_a_null_direction_moves_no_cosine_rate(name):
    """A gradient of rounding noise beside real ones: a cosine of two noise vectors would be a number of order 1."""
    real, noise = leaf([1.0] * 10), leaf([1.0] * 10)
    optimizer = hyper(name)([("real", real), ("noise", noise)], lr=0.02, levels=("layer",), safeguard=False)
    for step in range(4):
        give(real, torch.full((10,), 1.0 + 0.1 * step))
        give(noise, torch.full((10,), 1e-17))
        optimizer.step()
    rates = optimizer.rates()[0]["layer"]
    assert float(rates["real"]) != 0.02
    if name == "SGD":
        assert float(rates["noise"]) == 0.02


@every
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e38])
def test_a_bad_gradient_is_rejected_and_counted(name, poison):
    good, bad = leaf([1.0, 2.0], torch.float32), leaf([1.0, 2.0], torch.float32)
    optimizer = hyper(name)(
        [("good", good), ("bad", bad)], lr=0.02, levels=("global", "layer", "parameter"), safeguard=False
    )
    for step in range(4):
        give(good, [1.0, 1.0])
        give(bad, [1.0, poison if step == 2 else 1.0])
        optimizer.step()
        if step == 1:
            before = optimizer.rates()[0]
        if step == 2:
            after = optimizer.rates()[0]
    assert torch.equal(after["layer"]["bad"], before["layer"]["bad"])
    assert float(after["layer"]["good"]) > float(before["layer"]["good"])
    assert int(after["rejected"]["layer"]) == 1
    assert int(after["rejected"]["global"]) == 1
    assert all(value.isfinite().all() for value in optimizer.rates()[0]["parameter"].values())


def test_clipped_updates_are_counted_and_bounds_hold():
    weight = leaf([1.0, 1.0], torch.float32)
    optimizer = ours.HyperSGD([weight], lr=0.1, levels=ALL, min_lr=0.09, max_lr=0.11, hyper_lr=0.5, weight_lr=0.0)
    for _ in range(6):
        give(weight, [1.0, 1.0])
        optimizer.step()
    rates = optimizer.rates()[0]
    for level in ALL:
        value = rates[level] if level == "global" else rates[level]["0"]
        assert (value.double() <= 0.11).all()
        assert int(rates["clipped"][level]) > 0
    for sign in (1, -1, 1, -1, 1, -1, 1, -1):
        give(weight, [sign, sign])
        optimizer.step()
    assert (optimizer.rates()[0]["parameter"]["0"].double() >= 0.09).all()
    assert float(optimizer.rates()[0]["global"]) >= 0.09
