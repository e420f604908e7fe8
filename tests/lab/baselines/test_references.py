"""The baselines that are written here against their references: the same trajectory and the same rates, in float64."""

import pytest
import torch
from scipy import stats
from tests.optim.models import batch, flat, loss_of, network
from tests.oracles import baseline_references as references
from torch.func import functional_call

from metastep.lab.baselines import DFW, L4, SALSA, SASA, SPS, Armijo, GeN, Mechanic, MetaOptimize, ScheduleFreePlus
from metastep.lab.baselines.sasa import half_width, t_cumulative, t_quantile


def functional_loss(model):
    """The loss of a step's batch at any flat vector of parameters."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss_at(theta, step):
        x, y = batch(step)
        pieces = theta.split([shape.numel() for shape in shapes])
        parts = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        with torch.no_grad():
            return float((functional_call(model, parts, (x,)) - y).square().mean())

    return loss_at


def compare(optimizer, model, reference, steps=25, sent="loss", rel=1e-10):
    """Both side by side; the reference is sent the loss or the step, and the gradient."""
    theta, _ = next(reference)
    rates = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        g = flat(p.grad for p in model.parameters())
        theta, rate = reference.send((loss.item() if sent == "loss" else step, g))
        if optimizer.step_style == "plain":
            optimizer.step()
        elif optimizer.step_style == "loss":
            optimizer.step(lambda loss=loss: loss)
        else:
            optimizer.step(lambda step=step: loss_of(model, step))
        rates.append(rate)
        assert optimizer.applied_rate() == pytest.approx(rate, rel=rel)
        torch.testing.assert_close(flat(model.parameters()), theta, rtol=rel, atol=1e-12)
    return rates


@pytest.mark.parametrize("direction", ["momentum", "adam"])
def test_l4_is_its_reference(direction):
    model = network()
    reference = references.l4(flat(model.parameters()), adam=direction == "adam")
    rates = compare(L4(model.parameters(), direction=direction), model, reference)
    assert max(rates) > 1.5 * min(rates)


@pytest.mark.parametrize("variant", ["smooth_iter", "max", "plain"])
def test_sps_is_its_reference(variant):
    model = network()
    arguments = {"lr": 0.3, "c": 0.7, "f_star": 0.05}
    reference = references.sps(flat(model.parameters()), variant, n=5, **arguments)
    optimizer = SPS(model.parameters(), variant=variant, steps_per_epoch=5, **arguments)
    rates = compare(optimizer, model, reference)
    assert len(set(rates)) > 3 or variant == "max"


@pytest.mark.parametrize("arguments", [{}, {"lr": 5.0, "momentum": 0.0}, {"lr": 2.0, "weight_decay": 0.01}])
def test_dfw_is_its_reference(arguments):
    model = network()
    names = {"lr": "lr", "momentum": "mu", "weight_decay": "decay"}
    given = {names[name]: value for name, value in arguments.items()}
    rates = compare(DFW(model.parameters(), **arguments), model, references.dfw(flat(model.parameters()), **given))
    assert arguments == {} or min(rates) < 0.99 * arguments["lr"]


@pytest.mark.parametrize(("lr", "max_trials"), [(1.0, 100), (20.0, 100), (20.0, 3)])
def test_armijo_is_its_reference(lr, max_trials):
    model = network()
    reference = references.armijo(flat(model.parameters()), functional_loss(model), lr=lr, n=5, max_trials=max_trials)
    optimizer = Armijo(model.parameters(), lr=lr, steps_per_epoch=5, max_trials=max_trials)
    rates = compare(optimizer, model, reference, sent="step")
    if max_trials == 3:
        assert rates[0] == 1e-6
    else:
        assert optimizer.param_groups[0]["trials"] >= 1
        assert min(rates) < lr


@pytest.mark.parametrize("lr", [0.01, 20.0])
def test_goldstein_is_its_reference(lr):
    model = network()
    reference = references.goldstein(flat(model.parameters()), functional_loss(model), lr=lr, n=5)
    optimizer = Armijo(model.parameters(), lr=lr, condition="goldstein", steps_per_epoch=5)
    rates = compare(optimizer, model, reference, sent="step")
    assert rates[0] > lr if lr < 1 else rates[0] < lr


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.3, "weight_decay": 0.1}, {"s_init": 1e-3, "decay": 1.0}])
def test_mechanic_is_its_reference(arguments):
    model = network()
    reference = references.mechanic(flat(model.parameters()), **arguments)
    rates = compare(Mechanic(model.parameters(), **arguments), model, reference, rel=1e-8)
    assert max(rates) > 1.3 * rates[0]


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.3, "every": 1}, {"lr": 1e-3, "every": 2, "weight_decay": 0.1}])
def test_gen_is_its_reference(arguments):
    model = network()
    reference = references.gen(flat(model.parameters()), functional_loss(model), **arguments)
    rates = compare(GeN(model.parameters(), **arguments), model, reference, sent="step", rel=1e-6)
    assert min(rates) < rates[0] if arguments.get("lr") == 0.3 else max(rates) > rates[0]


@pytest.mark.parametrize(
    "arguments", [{}, {"lr": 0.3, "weight_decay": 20.0}, {"anneal_steps": 10, "average_after": 5, "r": 2.0}]
)
def test_schedule_free_plus_is_its_reference(arguments):
    model = network()
    names = {"weight_decay": "decay", "anneal_steps": "anneal", "average_after": "after"}
    given = {names.get(name, name): value for name, value in arguments.items()}
    reference = references.schedule_free_plus(flat(model.parameters()), **given)
    rates = compare(ScheduleFreePlus(model.parameters(), **arguments), model, reference)
    assert len(set(rates)) == 25


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.1, "weight_decay": 0.1}, {"hyper_lr": 0.1, "gamma": 0.9}])
def test_metaoptimize_is_its_reference(arguments):
    model = network()
    given = {{"hyper_lr": "eta"}.get(name, name): value for name, value in arguments.items()}
    reference = references.metaoptimize(flat(model.parameters()), **given)
    rates = compare(MetaOptimize(model.parameters(), **arguments), model, reference)
    assert len(set(rates)) > 3


@pytest.mark.parametrize(("lr", "weight_decay"), [(0.01, 0.0), (20.0, 0.1)])
def test_the_search_of_salsa_is_its_reference_and_ends_where_losses_no_longer_fall(lr, weight_decay):
    model = network()

    def p_value(x, y):
        return stats.linregress(x, y, alternative="less").pvalue

    given = {"lr": lr, "keep": 2, "c": 0.1}
    reference = references.salsa_rates(
        flat(model.parameters()), functional_loss(model), p_value, decay=weight_decay, n=5, least=5, every=3, **given
    )
    optimizer = SALSA(
        model.parameters(), steps_per_epoch=5, momentum=0.0, min_samples=5, test_every=3, weight_decay=weight_decay,
        drop=1 + 1e-14, **given
    )  # fmt: skip
    rates = compare(optimizer, model, reference, steps=60, sent="step", rel=1e-8)
    assert optimizer.param_groups[0]["switched"]
    assert len(set(rates)) > 8
    assert rates[-1] == pytest.approx(rates[-2])
    assert rates[-1] > lr if lr < 1 else rates[-1] < lr


@pytest.mark.parametrize("variance", ["batch_means", "iid"])
def test_sasa_is_its_reference_over_two_drops(variance):
    generator = torch.Generator().manual_seed(3)
    start = 3 * torch.ones(4, dtype=torch.float64)
    arguments = {"nu": 0.7, "keep": 2}
    reference = references.sasa(
        start.clone(), stats.t.ppf, lr=0.5, decay=0.1, least=40, warmup=50, every=10, iid=variance == "iid", **arguments
    )
    theta, _ = next(reference)
    w = torch.nn.Parameter(start.clone())
    optimizer = SASA(
        [w], 0.5, weight_decay=0.1, min_samples=40, warmup=50, test_every=10, variance=variance, **arguments
    )
    rates = []
    for _ in range(1500):
        w.grad = w.detach() + torch.randn(4, generator=generator, dtype=torch.float64)
        theta, rate = reference.send((None, w.grad.clone()))
        rates.append(optimizer.applied_rate())
        optimizer.step()
        torch.testing.assert_close(w.detach(), theta, rtol=1e-10, atol=1e-12)
    # the reference yields the rate of the next step
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert min(rates) < 0.011
    assert rate == pytest.approx(0.5 / 10 ** optimizer.param_groups[0]["drops"])


def test_correlated_samples_widen_the_interval_of_batch_means_and_not_the_independent_one():
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slow = noise.unfold(0, 40, 1).mean(1)[:2500]
    independent = half_width(slow, 0.05, "iid")
    for variance in ("batch_means", "overlapping"):
        assert half_width(slow, 0.05, variance) > 3 * independent
        assert half_width(noise[:2500], 0.05, variance) == pytest.approx(
            half_width(noise[:2500], 0.05, "iid"), rel=0.35
        )


@pytest.mark.parametrize("freedom", [1, 2, 5, 30, 1000, 100_000])
def test_quantiles_of_students_t_are_scipys(freedom):
    for probability in (0.6, 0.975, 0.9995, 0.02):
        assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-8)
    assert t_cumulative(-1.3, freedom) == pytest.approx(stats.t.cdf(-1.3, freedom), rel=1e-8)


def test_quantiles_refuse_what_is_no_probability():
    with pytest.raises(ValueError, match=r"probability must be in \(0, 1\), got 1.0"):
        t_quantile(1.0, 5)
    with pytest.raises(ValueError, match="freedom must be >= 1, got 0"):
        t_quantile(0.9, 0)
