"""The meta-training: it follows the true gradient, survives lost populations, and goes on bit for bit."""

import dataclasses
import io
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from metastep.core.policy import signal_policy, unpack_weights
from metastep.meta.population import Policy, PopulationConfig, PopulationTrainer
from metastep.meta.population.defaults import default_config
from metastep.meta.population.distribution import TaskSpec
from metastep.meta.population.exact import exact_gradient
from metastep.meta.population.jobs import Job, Outcome, evaluate, judge
from metastep.meta.population.members import WORST_LOSS, Members
from metastep.meta.population.strategies import Perturbations
from metastep.meta.population.survey import LEVELS, Findings, fit, survey


def tiny(policy: Policy, **changed: object) -> PopulationConfig:
    """Two surveyed tasks and four meta-steps on short tasks, some of them parts of long ones."""
    short = {"families": ("mlp",), "shortest": 12, "longest": 24, "longest_long": 60, "unroll": 10, "long_share": 0.4}
    settings = {
        "base": "sgd",
        "policy": policy,
        "survey_tasks": 2,
        "fit_steps": 20,
        "meta_steps": 4,
        "pairs": 2,
        **short,
        **changed,
    }
    return PopulationConfig(**settings)  # type: ignore[arg-type]


def test_the_exact_gradient_is_that_of_finite_differences(policy: Policy, spec: TaskSpec) -> None:
    spec = dataclasses.replace(spec, steps=8)
    weights = torch.randn(policy.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    _, gradient = exact_gradient(spec, policy, weights, 0.05)
    direction = torch.randn(policy.size, generator=torch.Generator().manual_seed(1)).double()
    above, below = (exact_gradient(spec, policy, weights + s * 1e-5 * direction, 0.05)[0] for s in (1, -1))
    assert float(gradient @ direction) == pytest.approx((above - below) / 2e-5, rel=1e-4)


def test_the_exact_run_is_that_of_the_population(policy: Policy, spec: TaskSpec) -> None:
    weights = torch.randn(1, policy.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    training, validation = Members(spec, "sgd", policy, torch.tensor([0.05]), dtype=torch.float64).run(weights)
    reached, _ = exact_gradient(spec, policy, weights[0], 0.05)
    assert reached == pytest.approx(float(validation.log() + 0.2 * training.log()), rel=1e-9)


def test_evolution_points_where_the_exact_gradient_points(policy: Policy, spec: TaskSpec) -> None:
    spec = dataclasses.replace(spec, steps=10)
    weights = torch.randn(policy.size, generator=torch.Generator().manual_seed(0)) * 0.3
    _, exact = exact_gradient(spec, policy, weights, 0.05)
    job = Job(spec, "sgd", policy, (-3.0,) * 200, sigma=0.02, seed=1, horizon_known=True, loss_known=True)
    estimate = evaluate(job, weights).gradient
    assert estimate is not None
    assert float(cosine_similarity(estimate.double(), exact, dim=0)) > 0.8  # of 57 dimensions and 200 pairs


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(stop: int, policy: Policy) -> None:
    undisturbed, stopped, resumed = (PopulationTrainer(tiny(policy)) for _ in range(3))
    while not undisturbed.finished:
        undisturbed.advance()
    for _ in range(stop):
        stopped.advance()
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    while not resumed.finished:
        resumed.advance()
    assert torch.equal(undisturbed.center, resumed.center)
    assert torch.equal(undisturbed.average, resumed.average)
    assert resumed.done == 6


def test_a_configuration_is_itself_after_a_trip_through_plain_values(policy: Policy) -> None:
    config = tiny(policy, seed=4)
    assert PopulationConfig.from_dict(config.as_dict()) == config


def test_meta_steps_without_a_gradient_are_skipped_and_counted(policy: Policy) -> None:
    """A population that diverged wholly, and one whose worker died, move nothing."""
    answers: list[Outcome | None] = [Outcome(None, 3.6, 1.0), None, Outcome(torch.ones(policy.size), 0.0, 0.0)]

    def engine(jobs: Sequence[Job], center: Tensor) -> list[Outcome | None]:
        return [answers.pop(0)]

    trainer = PopulationTrainer(tiny(policy, survey_tasks=0, meta_steps=3, long_share=0.0), engine)
    before = trainer.center.clone()
    for skipped in (1, 2):
        trainer.advance()
        assert trainer.skipped == skipped
        assert torch.equal(trainer.center, before)
    trainer.advance()
    assert trainer.skipped == 2
    assert (trainer.center < before).all()


def test_a_lost_population_costs_its_own_part_of_the_meta_step_only(policy: Policy) -> None:
    def engine(jobs: Sequence[Job], center: Tensor) -> list[Outcome | None]:
        return [None, Outcome(torch.full((policy.size,), 2.0), 1.0, 0.0), Outcome(None, 3.0, 1.0)]

    trainer = PopulationTrainer(tiny(policy, survey_tasks=0, tasks=3, long_share=0.0), engine)
    outcome = trainer.advance()
    assert outcome.gradient is not None
    assert torch.equal(outcome.gradient, torch.full((policy.size,), 2.0))
    assert outcome.meta_loss == 2.0
    assert trainer.skipped == 0


def test_a_population_that_diverged_wholly_has_no_gradient() -> None:
    lost = torch.full((4,), WORST_LOSS)
    perturbations = Perturbations(2, 3, 0.1, seed=0)
    perturbations.around(torch.zeros(3))
    assert judge(perturbations, lost, lost).gradient is None
    partly = judge(perturbations, lost, torch.tensor([0.5, WORST_LOSS, 1.0, WORST_LOSS]))
    assert partly.gradient is not None
    assert partly.diverged == 0.5


def test_the_fit_drives_up_where_the_rate_is_too_low_and_down_where_it_is_too_high(policy: Policy) -> None:
    """Made-up tasks of which the feature "update" tells the level and "alignment" where the best level is."""
    generator, findings = torch.Generator().manual_seed(0), []
    names = [*policy.signals, "horizon_known", "loss_known"]
    levels = torch.arange(len(LEVELS)).float()
    for _ in range(30):
        best = 3 + 5 * torch.rand((), generator=generator)
        seen = torch.zeros(5, len(levels), len(names))
        seen[..., names.index("update")] = levels / 6 - 1
        seen[..., names.index("alignment")] = best / 6 - 1
        findings.append(Findings(seen.half(), torch.linspace(0, 0.5, 5), 0.1 * (levels - best).square(), LEVELS))
    weights = fit(findings, policy, seed=0, steps=300)
    parts = unpack_weights(weights, policy.features, policy.hidden, recurrent=False)
    for best in (4.0, 7.0):
        x = torch.zeros(2, len(names))
        x[:, names.index("update")] = torch.tensor([best - 2, best + 2]) / 6 - 1
        x[:, names.index("alignment")] = best / 6 - 1
        low, high = signal_policy(parts, x, x.new_zeros(2, 0))[0].tolist()
        assert low > 0.1
        assert high < -0.1


def test_a_survey_finds_that_far_too_low_levels_are_bad(policy: Policy, spec: TaskSpec) -> None:
    found = survey(dataclasses.replace(spec, steps=80), "sgd", policy, 0.01)
    assert found.seen.shape == (len(found.moments), len(LEVELS), policy.features)
    assert found.fitness.argmin() > 2
    assert found.fitness[0] > found.fitness.min() + 0.3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": "lion"}, r"population must be one of sgd, adamw, got 'lion'"),
        ({"base": "sgd", "pairs": 0}, r"pairs must be > 0, got 0"),
        ({"base": "sgd", "sigma": -1.0}, r"sigma must be > 0, got -1.0"),
        ({"base": "sgd", "meta_steps": -1}, r"meta_steps must be >= 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_config(**changed)  # type: ignore[arg-type]
