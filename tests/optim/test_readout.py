"""What is shown is what is used."""

import doctest
import importlib
from unittest.mock import Mock

import pytest
import torch
from tests.optim.models import ALL_LEVELS, VARIANTS, flat, loss_of, network, train

from metastep.optim import HyperAdam, HyperSGD, log_rates


@pytest.mark.parametrize("levels", [ALL_LEVELS, ("global",), ("layer", "unit"), ("parameter",)])
def test_the_combined_rate_is_what_multiplied_the_direction(levels):
    """With momentum the direction is the buffer: parameter = before - combined * buffer, under a schedule too."""
    model = network()
    optimizer = HyperSGD(model.named_parameters(), lr=0.02, momentum=0.9, levels=levels, hyper_lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        combined = optimizer.rates()[0]["combined"]
        for name, p in model.named_parameters():
            used = before[name] - combined[name] * optimizer.state[p]["momentum_buffer"]
            torch.testing.assert_close(p.detach(), used, rtol=0, atol=1e-15)
        scheduler.step()
    assert float(flat(combined.values()).std()) > 0 or levels == ("global",)


@pytest.mark.parametrize("levels", [ALL_LEVELS, ("global", "layer")])
def test_combined_is_the_weighted_sum_of_the_levels(levels):
    model = network()
    optimizer = HyperAdam(model.named_parameters(), lr=0.02, levels=levels, hyper_lr=0.1)
    train(model, optimizer, 4)
    rates = optimizer.rates()[0]
    for name, p in model.named_parameters():
        total = torch.zeros_like(p)
        for level in levels:
            value = rates[level] if level == "global" else rates[level][name]
            if level == "unit":
                value = value.view([-1, *[1] * (p.dim() - 1)]) if value.numel() > 1 else value.reshape(())
            total = total + rates["weights"][level] * value
        torch.testing.assert_close(rates["combined"][name].expand_as(p), total, rtol=1e-12, atol=0)


def test_alignment_is_the_cosine_of_gradient_and_last_direction():
    model = network()
    optimizer = HyperSGD(model.named_parameters(), lr=0.02, levels=("global", "layer", "unit"))
    train(model, optimizer, 1)
    old = {name: p.grad.clone() for name, p in model.named_parameters()}
    train(model, optimizer, 1, start=1)
    alignment = optimizer.rates()[0]["alignment"]
    for name, p in model.named_parameters():
        expected = torch.nn.functional.cosine_similarity(p.grad.flatten(), old[name].flatten(), dim=0)
        torch.testing.assert_close(alignment["layer"][name], expected, rtol=1e-10, atol=0)
    everything = torch.nn.functional.cosine_similarity(
        flat([p.grad for p in model.parameters()]), flat(old.values()), dim=0
    )
    torch.testing.assert_close(alignment["global"], everything, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reading_changes_nothing_and_what_was_read_stays(variant):
    cls, _, arguments = VARIANTS[variant]
    models = network(), network()
    kept = []
    for model in models:
        optimizer = cls(model.parameters(), lr=0.02, levels=ALL_LEVELS, **arguments)
        for step in range(4):
            train(model, optimizer, 1, start=step)
            if model is models[0]:
                kept.append(optimizer.rates()[0])
                optimizer.describe()
    assert torch.equal(flat(models[0].parameters()), flat(models[1].parameters()))
    layers = torch.stack([flat(rates["layer"].values()) for rates in kept])
    assert (layers[1:] != layers[:-1]).any(dim=1).all(), "a list of readings holds distinct values"


def test_before_the_first_step_and_after_loading_rates_can_be_read():
    model = network()
    optimizer = HyperAdam(model.named_parameters(), lr=0.02, levels=ALL_LEVELS)
    fresh = optimizer.rates()[0]
    assert float(fresh["global"]) == pytest.approx(0.02)
    assert fresh["parameter"]["0.weight"].shape == model[0].weight.shape
    train(model, optimizer, 3)
    other = HyperAdam(network().named_parameters(), lr=0.5, levels=ALL_LEVELS)
    other.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(other.rates()[0]["global"], optimizer.rates()[0]["global"], rtol=0, atol=0)


def test_the_table_names_every_tensor_weight_and_count():
    model = network()
    optimizer = HyperSGD(
        [{"params": list(model[0].named_parameters("conv"))}, {"params": list(model[5].named_parameters("head"))}],
        lr=0.02,
        levels=ALL_LEVELS,
    )
    train(model, optimizer, 3)
    table = optimizer.describe()
    for word in ("conv.weight", "head.bias", "group 1", "weights global", "global rate", "clipped", "rejected", "unit"):
        assert word in table


def test_rates_are_logged_under_their_names():
    class Writer:
        def __init__(self):
            self.scalars, self.histograms = {}, {}

        def add_scalar(self, tag, value, step):
            self.scalars[tag] = (value, step)

        def add_histogram(self, tag, values, step):
            self.histograms[tag] = (values.numel(), step)

    model, writer = network(), Writer()
    optimizer = HyperSGD(model.named_parameters(), lr=0.02, levels=ALL_LEVELS)
    train(model, optimizer, 2)
    log_rates(optimizer, writer, 7)
    assert writer.scalars["rates/0/global"] == (float(optimizer.rates()[0]["global"]), 7)
    assert "rates/0/layer/5.weight" in writer.scalars
    assert writer.scalars["rates/0/weight/unit"][1] == 7
    assert writer.histograms["rates/0/parameter/0.weight"] == (24, 7)
    combined = optimizer.rates()[0]["combined"]
    assert writer.histograms["rates/0/combined/0.weight"] == (combined["0.weight"].numel(), 7)


def test_one_rate_for_a_tensor_is_logged_as_it_is_used():
    model, writer = network(), Mock()
    optimizer = HyperSGD(model.named_parameters(), lr=0.02, levels=("global", "layer"), settle=(0.01, 1))
    train(model, optimizer, 3)
    log_rates(optimizer, writer, 3)
    logged = {call.args[0]: call.args[1] for call in writer.add_scalar.call_args_list}
    for name, rate in optimizer.rates()[0]["combined"].items():
        assert logged[f"rates/0/combined/{name}"] == float(rate)


@pytest.mark.parametrize("name", ["optimizers", "wrapper"])
def test_the_examples_in_the_docstrings_run(name):
    module = importlib.import_module(f"metastep.optim.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
