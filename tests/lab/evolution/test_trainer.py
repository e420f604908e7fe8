"""Meta-training by evolution: what moves the weights, in which processes, and that it resumes bit for bit."""

import io
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from metastep.lab.evolution import EvolutionConfig, EvolutionTrainer, Policy, default_config
from metastep.lab.evolution.policy import per_layer_weights
from metastep.lab.evolution.population import Outcome, Population
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.runtime.executor import LocalExecutor, RayExecutor


def tiny(policy: Policy, **changed: object) -> EvolutionConfig:
    """Two swept tasks and four meta-steps on short tasks, some of them parts of long ones."""
    short = {"families": ("mlp",), "shortest": 12, "longest": 24, "longest_long": 60, "unroll": 10, "long_share": 0.4}
    settings = {
        "base": "sgd",
        "policy": policy,
        "warm_start_tasks": 2,
        "fit_steps": 20,
        "meta_steps": 4,
        "pairs": 2,
        **short,
        **changed,
    }
    return EvolutionConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_training_that_was_stopped_resumes_bit_for_bit(stop: int, policy: Policy) -> None:
    undisturbed, stopped, resumed = (EvolutionTrainer(tiny(policy)) for _ in range(3))
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
    assert EvolutionConfig.from_dict(config.as_dict()) == config


class Answers(LocalExecutor):
    """Gives prepared outcomes in place of training."""

    def __init__(self, *answers: list[Outcome]) -> None:
        super().__init__()
        self.answers = list(answers)

    def map(self, function: object, items: object) -> list[Outcome]:  # type: ignore[override]
        return self.answers.pop(0)


def test_meta_steps_without_a_gradient_are_skipped_and_counted(policy: Policy) -> None:
    """Populations that diverged wholly move nothing."""
    executor = Answers([Outcome(None, 3.6, 1.0)], [Outcome(torch.ones(policy.size), 0.0, 0.0)])
    trainer = EvolutionTrainer(tiny(policy, warm_start_tasks=0, meta_steps=2, long_share=0.0), executor)
    before = trainer.center.clone()
    trainer.advance()
    assert trainer.skipped == 1
    assert torch.equal(trainer.center, before)
    trainer.advance()
    assert trainer.skipped == 1
    assert (trainer.center < before).all()


def test_a_population_that_diverged_costs_its_own_part_of_the_meta_step_only(policy: Policy) -> None:
    executor = Answers([Outcome(torch.full((policy.size,), 2.0), 1.0, 0.0), Outcome(None, 3.0, 1.0)])
    trainer = EvolutionTrainer(tiny(policy, warm_start_tasks=0, populations=2, long_share=0.0), executor)
    outcome = trainer.advance()
    assert outcome.gradient is not None
    assert torch.equal(outcome.gradient, torch.full((policy.size,), 2.0))
    assert (outcome.meta_loss, outcome.diverged) == (2.0, 0.5)
    assert trainer.skipped == 0


class Counts(LocalExecutor):
    """Counts what it is given."""

    sizes: list[int] = []

    def map(self, function, items):
        self.sizes = [*self.sizes, len(items)]
        return super().map(function, items)


def test_a_warm_start_takes_as_many_tasks_at_once_as_a_meta_step(policy: Policy) -> None:
    executor = Counts()
    config = tiny(policy, warm_start_tasks=3, populations=2, meta_steps=1, long_share=0.0)
    trainer = EvolutionTrainer(config, executor)
    while trainer.warming_start:
        trainer.advance()
    assert executor.sizes == [2, 1]
    assert (trainer.done, trainer.skipped, len(trainer.sweeps)) == (3, 0, 3)
    assert trainer.center.any()
    trainer.advance()
    assert trainer.finished
    assert executor.sizes == [2, 1, 2]


def test_the_warm_start_of_a_layers_policy_is_that_of_the_network(policy: Policy) -> None:
    layered = policy._replace(scope="layer")
    trainers = [EvolutionTrainer(tiny(one, warm_start_tasks=1, meta_steps=1)) for one in (policy, layered)]
    for trainer in trainers:
        trainer.advance()
    assert torch.equal(per_layer_weights(trainers[0].center, layered), trainers[1].center)


def test_a_start_stands_in_for_the_warm_start(policy: Policy) -> None:
    weights = torch.randn(policy.size, generator=torch.Generator().manual_seed(0))
    start = tuple(weights.tolist())
    assert torch.equal(EvolutionTrainer(tiny(policy, warm_start_tasks=0, start=start)).center, weights)
    layered = policy._replace(scope="layer")
    assert torch.equal(
        EvolutionTrainer(tiny(layered, warm_start_tasks=0, start=start)).center, per_layer_weights(weights, layered)
    )
    with pytest.raises(ValueError, match="warm_start_tasks must be 0"):
        tiny(policy, start=start)
    with pytest.raises(ValueError, match=r"start must hold .* weights, got 3"):
        tiny(policy, warm_start_tasks=0, start=start[:3])


class EndsItsProcessOnce:
    """What a population gives, but the process of the first one is killed, as one short of memory is."""

    def __init__(self, mark: Path, center: torch.Tensor) -> None:
        self.mark, self.center = mark, center

    def __call__(self, population: Population) -> Outcome:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return population.evaluate(self.center)


def weights_after(config: EvolutionConfig, executor: LocalExecutor | RayExecutor) -> torch.Tensor:
    """The weights that a whole training ends with."""
    with executor:
        trainer = EvolutionTrainer(config, executor)
        while not trainer.finished:
            trainer.advance()
    return trainer.center


def test_in_two_processes_a_training_gives_the_same_numbers(policy: Policy) -> None:
    config = tiny(policy, populations=2, meta_steps=2, long_share=0.0)
    assert torch.equal(weights_after(config, LocalExecutor(2)), weights_after(config, LocalExecutor()))


@pytest.mark.filterwarnings("ignore")
def test_on_ray_a_training_gives_the_same_numbers(policy: Policy) -> None:
    pytest.importorskip("ray")
    config = tiny(policy, populations=2, meta_steps=2, long_share=0.0)
    assert torch.equal(weights_after(config, RayExecutor()), weights_after(config, LocalExecutor()))


def test_a_population_whose_process_is_killed_is_trained_again(policy: Policy, spec: TaskSpec, tmp_path: Path) -> None:
    populations = [
        Population(spec, "sgd", policy, (-3.0, -3.0), 0.05, seed, horizon_known=True, loss_known=True)
        for seed in (1, 2)
    ]
    center = torch.zeros(policy.size)
    with LocalExecutor(2) as executor:
        found = executor.map(EndsItsProcessOnce(tmp_path / "killed", center), populations)
        assert (tmp_path / "killed").exists()
        for outcome, other in zip(
            found, executor.map(partial(Population.evaluate, center=center), populations), strict=True
        ):
            assert outcome.gradient is not None
            torch.testing.assert_close(outcome.gradient, other.gradient, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": "lion"}, r"base must be one of sgd, adamw, got 'lion'"),
        ({"base": "sgd", "pairs": 0}, r"pairs must be > 0, got 0"),
        ({"base": "sgd", "sigma": -1.0}, r"sigma must be > 0, got -1.0"),
        ({"base": "sgd", "meta_steps": -1}, r"meta_steps must be >= 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_config(**changed)  # type: ignore[arg-type]
