"""With hyper_lr=0 and weight_lr=0 every optimizer is its torch.optim base, bit for bit."""

import itertools

import pytest
import torch
from tests.optim.models import flat, loss_of, network

import metastep.optim as ours


def combinations(**options):
    names = list(options)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*options.values())]


def legal_sgd(arguments):
    return not arguments["nesterov"] or (arguments["momentum"] > 0 and arguments["dampening"] == 0)


KERNELS = [{"foreach": None}, {"foreach": True}, {"foreach": False}, {"fused": True}]
UNFUSED = [kernel for kernel in KERNELS if "fused" not in kernel]

SGD = [
    arguments
    for arguments in combinations(
        momentum=[0, 0.9], dampening=[0, 0.3], nesterov=[False, True], weight_decay=[0, 0.1], maximize=[False, True]
    )
    if legal_sgd(arguments)
]
ADAM = combinations(amsgrad=[False, True], weight_decay=[0, 0.1], maximize=[False, True], betas=[(0.9, 0.999)])
RMSPROP = combinations(centered=[False, True], momentum=[0, 0.5], weight_decay=[0, 0.1], maximize=[False, True])
ADAGRAD = combinations(
    lr_decay=[0, 0.1], weight_decay=[0, 0.1], maximize=[False, True], initial_accumulator_value=[0, 0.5]
)
CASES = {
    "SGD": (SGD, KERNELS),
    "Adam": ([*ADAM, *({**a, "decoupled_weight_decay": True} for a in ADAM)], KERNELS),
    "AdamW": (ADAM, KERNELS),
    "RMSprop": (RMSPROP, UNFUSED),
    "Adagrad": (ADAGRAD, KERNELS),
}


def trajectory(cls, arguments, dtype, tensor_lr=False, **hyper):
    model = network(dtype)
    lr = torch.tensor(0.02) if tensor_lr else 0.02
    optimizer = cls(model.parameters(), lr=lr, **arguments, **hyper)
    for step in range(3):
        optimizer.zero_grad()
        if step == 1:
            optimizer.param_groups[0]["lr"] = torch.tensor(0.005) if tensor_lr else 0.005
        loss_of(model, step, dtype).backward()
        optimizer.step()
    return flat(model.parameters()), optimizer


@pytest.mark.parametrize("name", CASES)
def test_frozen_rates_are_the_base_in_every_flag_combination(name):
    arguments, kernels = CASES[name]
    for case, kernel in itertools.product(arguments, kernels):
        theirs, plain = trajectory(getattr(torch.optim, name), {**case, **kernel}, torch.float32)
        mine, hyper = trajectory(
            getattr(ours, f"Hyper{name}"), {**case, **kernel}, torch.float32, hyper_lr=0.0, weight_lr=0.0
        )
        assert torch.equal(mine, theirs), (case, kernel)
        for p, q in zip(hyper.state.values(), plain.state.values(), strict=True):
            assert {k for k, v in p.items() if v is not None} == {k for k, v in q.items() if v is not None}
            assert all(torch.equal(p[k], q[k]) for k in p if p[k] is not None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_frozen_rates_are_the_base_in_other_dtypes(name, dtype):
    theirs, _ = trajectory(getattr(torch.optim, name), {}, dtype)
    mine, _ = trajectory(getattr(ours, f"Hyper{name}"), {}, dtype, hyper_lr=0.0, weight_lr=0.0)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_frozen_rates_are_the_base_with_a_tensor_rate(name):
    theirs, _ = trajectory(getattr(torch.optim, name), {}, torch.float32, tensor_lr=True)
    mine, _ = trajectory(getattr(ours, f"Hyper{name}"), {}, torch.float32, tensor_lr=True, hyper_lr=0.0, weight_lr=0.0)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", CASES)
def test_frozen_rates_are_differentiable_where_the_base_is(name):
    def run(cls, **hyper):
        start = torch.linspace(1, 2, 5, dtype=torch.float64).requires_grad_()
        theta = start * 1
        theta.retain_grad()
        optimizer = cls([theta], lr=0.1, differentiable=True, **hyper)
        theta.grad = start * 3
        optimizer.step()
        theta.sum().backward()
        return start.grad

    mine = run(getattr(ours, f"Hyper{name}"), hyper_lr=0.0, weight_lr=0.0)
    assert torch.equal(mine, run(getattr(torch.optim, name)))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_frozen_rates_take_sparse_gradients_where_the_base_does(name):
    def run(cls, **hyper):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(10, 3, sparse=True)
        optimizer = cls(embedding.parameters(), lr=0.1, **hyper)
        for step in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([1, 4, step])).square().sum().backward()
            optimizer.step()
        return embedding.weight.detach()

    assert torch.equal(run(getattr(ours, f"Hyper{name}"), hyper_lr=0.0, weight_lr=0.0), run(getattr(torch.optim, name)))


@pytest.mark.parametrize("name", CASES)
def test_frozen_rates_are_the_base_for_complex_parameters(name):
    def run(cls, **hyper):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
        optimizer = cls([weight], lr=0.02, **hyper)
        for _ in range(4):
            optimizer.zero_grad()
            (weight - (1 + 2j)).abs().square().sum().backward()
            optimizer.step()
        return weight.detach()

    mine = run(getattr(ours, f"Hyper{name}"), hyper_lr=0.0, weight_lr=0.0)
    assert torch.equal(mine, run(getattr(torch.optim, name)))


@pytest.mark.parametrize("name", CASES)
def test_the_first_adapting_step_is_the_bases(name):
    """No last direction exists, so the first step takes the initial rate; only the order of rounding may differ."""
    model, plain = network(), network()
    for net, cls in ((model, getattr(ours, f"Hyper{name}")), (plain, getattr(torch.optim, name))):
        optimizer = cls(net.parameters(), lr=0.02, **({"safeguard": False} if net is model else {}))
        loss_of(net, 0).backward()
        optimizer.step()
    torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_one_hot_weights_are_a_single_level(name):
    cls = getattr(ours, f"Hyper{name}")
    for level in ("global", "layer", "unit", "parameter"):
        single, several = network(), network()
        levels = ("global", "layer", "unit", "parameter")
        one = cls(single.parameters(), lr=0.02, levels=(level,), hyper_lr=0.05)
        all_four = cls(
            several.parameters(),
            lr=0.02,
            levels=levels,
            weights={j: float(j == level) for j in levels},
            weight_lr=0.0,
            hyper_lr=0.05,
        )
        for net, optimizer in ((single, one), (several, all_four)):
            for step in range(5):
                optimizer.zero_grad()
                loss_of(net, step).backward()
                optimizer.step()
        torch.testing.assert_close(flat(single.parameters()), flat(several.parameters()), rtol=0, atol=1e-13)


def test_a_network_of_one_parameter_has_the_same_rate_at_every_level():
    trajectories = []
    for level in ("global", "layer", "unit", "parameter"):
        weight = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
        optimizer = ours.HyperSGD([weight], lr=0.02, levels=(level,), hyper_lr=0.05)
        for step in range(6):
            optimizer.zero_grad()
            (weight - step).square().sum().backward()
            optimizer.step()
        trajectories.append(weight.item())
    assert max(trajectories) - min(trajectories) < 1e-15
