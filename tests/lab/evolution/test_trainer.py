"""The meta-training: it follows the true gradient, survives lost populations, and goes on bit for bit."""

import dataclasses
import io
import math
import os
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch.nn.functional import cosine_similarity

from metastep.core.policy import signal_policy, unpack_weights
from metastep.lab.evolution import Policy, PopulationConfig, PopulationTrainer
from metastep.lab.evolution.defaults import default_config
from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.exact import exact_gradient
from metastep.lab.evolution.jobs import Job, Outcome, evaluate, judge
from metastep.lab.evolution.members import WORST_LOSS, Members
from metastep.lab.evolution.process_engine import ProcessEngine
from metastep.lab.evolution.strategies import Perturbations
from metastep.lab.evolution.survey import LEVELS, Findings, fit, survey
from metastep.lab.evolution.widening import widen


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

    def engine(work: object, jobs: Sequence[Job]) -> list[Outcome | None]:
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
    def engine(work: object, jobs: Sequence[Job]) -> list[Outcome | None]:
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
        places = levels.expand(5, -1)
        findings.append(Findings(seen.half(), places, torch.linspace(0, 0.5, 5), 0.1 * (levels - best).square()))
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
    found = survey(job_of(dataclasses.replace(spec, steps=80), policy, log_rate=math.log(0.01)))
    assert found.seen.shape == (len(found.moments), 2 * len(LEVELS), policy.features)
    assert found.fitness.shape == LEVELS.shape
    fixed, others = found.places.split(len(LEVELS), dim=1)
    torch.testing.assert_close(fixed, torch.arange(len(LEVELS)).float().expand_as(fixed), atol=1e-4, rtol=0)
    assert ((others[0] != others[-1]) & (others[0] > 0)).all()  # each changes once, from a level that was tried
    update = found.seen[-1, :, policy.signals.index("update")]
    assert torch.equal(update.argsort()[:2], found.places[-1].argsort()[:2])  # where they are is what they see
    assert found.fitness.argmin() > 2
    assert found.fitness[0] > found.fitness.min() + 0.3


def job_of(spec: TaskSpec, policy: Policy, log_rate: float = -3.0, seed: int = 1) -> Job:
    return Job(spec, "sgd", policy, (log_rate, log_rate), 0.05, seed, horizon_known=True, loss_known=True)


def test_a_survey_takes_as_many_tasks_at_once_as_a_meta_step(policy: Policy) -> None:
    sizes = []

    def engine(work, jobs: Sequence[Job]) -> list[object]:
        sizes.append(len(jobs))
        return [None if job is jobs[0] and len(sizes) == 1 else work(job) for job in jobs]

    trainer = PopulationTrainer(tiny(policy, survey_tasks=3, tasks=2, meta_steps=1, long_share=0.0), engine)
    while trainer.surveying:
        trainer.advance()
    assert sizes == [2, 1]
    assert trainer.done == 3
    assert trainer.skipped == 1
    assert len(trainer.findings) == 2
    assert trainer.center.any()
    trainer.advance()
    assert trainer.finished


def test_a_survey_of_a_layers_policy_starts_it_as_that_of_the_network(policy: Policy) -> None:
    layered = policy._replace(scope="layer")
    trainers = [PopulationTrainer(tiny(one, survey_tasks=1, meta_steps=1)) for one in (policy, layered)]
    for trainer in trainers:
        trainer.advance()
    assert torch.equal(widen(trainers[0].center, layered), trainers[1].center)


def test_a_start_stands_in_for_the_survey(policy: Policy) -> None:
    weights = torch.randn(policy.size, generator=torch.Generator().manual_seed(0))
    start = tuple(weights.tolist())
    assert torch.equal(PopulationTrainer(tiny(policy, survey_tasks=0, start=start)).center, weights)
    layered = policy._replace(scope="layer")
    assert torch.equal(PopulationTrainer(tiny(layered, survey_tasks=0, start=start)).center, widen(weights, layered))
    with pytest.raises(ValueError, match="survey_tasks must be 0"):
        tiny(policy, start=start)
    with pytest.raises(ValueError, match=r"start must hold .* weights, got 3"):
        tiny(policy, survey_tasks=0, start=start[:3])


class _Die:
    """Work that ends its process at the first job."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, job: Job) -> int:
        if job.seed == self.seed:
            os._exit(1)
        return job.seed


def test_processes_find_the_same_and_one_that_dies_is_replaced(policy: Policy, spec: TaskSpec) -> None:
    jobs = [job_of(spec, policy, seed=seed) for seed in (1, 2, 3)]
    work = partial(evaluate, center=torch.zeros(policy.size))
    with ProcessEngine(2) as engine:
        for job, outcome in zip(jobs, engine(work, jobs), strict=True):
            assert outcome is not None
            assert outcome.gradient is not None
            torch.testing.assert_close(outcome.gradient, evaluate(job, work.keywords["center"]).gradient)
        found = engine(_Die(3), jobs)
        assert found[2] is None
        assert engine(_Die(0), jobs) == [1, 2, 3]
    with pytest.raises(ValueError, match="workers must be >= 1"):
        ProcessEngine(0)


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
