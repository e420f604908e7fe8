"""What people do by mistake ends in one line that says what to do, or in the right result; in every optimizer."""

import pytest
import torch
from tests.optim.optimizers import ALL

import metastep as ms
from metastep.optim import HYPER_OPTIMIZERS

MAKERS = {
    **{name: (lambda p, name=name, **o: getattr(ms, name)(p, lr=0.01, **o)) for name in HYPER_OPTIMIZERS},
    "Hyper(NAdam)": lambda p, **o: ms.Hyper(torch.optim.NAdam(p, lr=0.01), **o),
}
every = pytest.mark.parametrize("name", MAKERS)
compiled = pytest.mark.parametrize("compiled", [False, True])


def take_steps(optimizer, parameters, steps=3):
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message
    return message


@pytest.mark.parametrize("name", HYPER_OPTIMIZERS)
def test_a_rate_of_none_is_refused_at_once_and_in_mid_run(name):
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="lr must be a finite number >= 0, got None") as caught:
        getattr(ms, name)([weight], lr=None)
    one_line(caught)
    optimizer = MAKERS[name]([weight])
    take_steps(optimizer, [weight])
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="lr must be a finite number >= 0, got None"):
        take_steps(optimizer, [weight])


@every
@compiled
def test_a_parameter_that_was_resized_is_named(name, compiled):
    weight, bias = torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4))
    optimizer = MAKERS[name]([("weight", weight), ("bias", bias)], compiled=compiled)
    take_steps(optimizer, [weight, bias])
    weight.grad = None
    weight.data = torch.ones(5, 3)
    with pytest.raises(ValueError, match=r"got \(5, 3\) torch.float32 for 'weight', which had \(4, 3\)") as caught:
        take_steps(optimizer, [weight, bias])
    one_line(caught)


@every
@compiled
def test_a_network_that_was_converted_in_mid_run_is_refused(name, compiled):
    model = torch.nn.Linear(3, 2)
    optimizer = MAKERS[name](model.named_parameters(), compiled=compiled)
    model.double()  # before the first step that is no trouble
    take_steps(optimizer, model.parameters())
    model.float()
    with pytest.raises(ValueError, match=r"torch.float32 for 'weight', which had \(2, 3\) torch.float64") as caught:
        take_steps(optimizer, model.parameters())
    one_line(caught)


@every
def test_a_closure_may_return_nothing(name):
    weight, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer, plain = MAKERS[name]([weight]), MAKERS[name]([other])
    for _ in range(3):

        def closure():
            weight.grad = torch.ones(3)

        assert optimizer.step(closure) is None
    take_steps(plain, [other])
    assert torch.equal(weight, other)


@every
@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_default_type_changes_nothing(name, default, frozen):
    results, kept = [], torch.get_default_dtype()
    options = {"hyper_lr": 0.0, "weight_lr": 0.0} if frozen else {"levels": ALL}
    for kind in (kept, default):
        torch.set_default_dtype(kind)
        try:
            weight = torch.nn.Parameter(torch.linspace(1, 2, 12, dtype=torch.float32).reshape(4, 3))
            optimizer = MAKERS[name]([weight], **options)
            take_steps(optimizer, [weight])
            optimizer.load_state_dict(optimizer.state_dict())
            take_steps(optimizer, [weight])
            rates = optimizer.rates()[0]
            assert rates["combined"]["0"].dtype in (torch.float32, torch.float64)
            optimizer.describe()
        finally:
            torch.set_default_dtype(kept)
        results.append((weight.detach(), float(rates["global"]) if "global" in rates else 0.0))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=0)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


@every
def test_inference_mode_is_refused_before_anything_has_changed(name):
    with torch.inference_mode():
        lost = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"must not be made under torch\.inference_mode"):
        MAKERS[name]([lost])
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = MAKERS[name]([weight])
    weight.grad = torch.ones(3)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"step must run outside torch.inference_mode"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    take_steps(optimizer, [weight])
    assert (weight < 1).all()


@every
@compiled
def test_sparse_gradients_are_refused_at_the_first_step_and_later(name, compiled):
    for late in (False, True):
        embedding, other = torch.nn.Embedding(5, 2, sparse=True), torch.nn.Parameter(torch.ones(2))
        optimizer = MAKERS[name]([other, embedding.weight], compiled=compiled)
        if late:
            take_steps(optimizer, [other, embedding.weight])
        embedding.weight.grad, other.grad = None, torch.ones(2)
        embedding(torch.tensor([1])).sum().backward()
        before = other.detach().clone()
        with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*sparse=False") as caught:
            optimizer.step()
        one_line(caught)
        assert torch.equal(other, before)
