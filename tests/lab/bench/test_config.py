"""What a run is told: refused where it makes no sense, and the same after JSON."""

import json
from typing import Any

import pytest
from tests.lab.bench.running import learning_config, run_config

from metastep.lab.bench.config import MetaConfig, RunConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": -3}, "batch_size must be >= 1, got -3"),
        ({"total_steps": 0}, "total_steps must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"lr": 0.0}, "lr must be > 0 and finite, got 0.0"),
        ({"lr": float("nan")}, "lr must be > 0 and finite, got nan"),
        ({"lr": True}, "lr must be > 0 and finite, got True"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"clip_norm": float("inf")}, "clip_norm must be > 0 and finite"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
        ({"warmup_steps": 5, "total_steps": 5}, "warmup_steps must be less than the run's 5 steps, got 5"),
        ({"train_size": 0}, "train_size must be >= 1, got 0"),
        ({"inner_valid": -5}, "inner_valid must be >= 0, got -5"),
        ({"outer_valid": -5}, "outer_valid must be >= 0, got -5"),
        ({"noise": "flip", "noise_rate": 1.5}, r"noise_rate must be in \[0, 1\], got 1.5"),
        ({"noise": "flip", "noise_rate": -0.1}, r"noise_rate must be in \[0, 1\], got -0.1"),
        ({"noise": "salt", "noise_rate": 0.1}, "noise must be uniform or flip, got 'salt'"),
        ({"noise_rate": 0.1}, "noise must be uniform or flip for a noise_rate of 0.1, got none"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"log_every": 0}, "log_every must be >= 1, got 0"),
        ({"eval_every": 0}, "eval_every must be >= 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be >= 1, got 0"),
        ({"optimizer": "sdg"}, "optimizer must be a known name, got 'sdg'; did you mean sgd"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run_config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"in_epoch": 0}, "in_epoch must be >= 1, got 0"),
        ({"meta_lr": -1e-3}, "meta_lr must be > 0 and finite, got -0.001"),
        ({"hidden_size": 0}, "hidden_size must be >= 1, got 0"),
        ({"num_layers": 0}, "num_layers must be >= 1, got 0"),
    ],
)
def test_learning_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MetaConfig(**changes)


@pytest.mark.parametrize("config", [run_config(), learning_config(noise="uniform", noise_rate=0.4)])
def test_a_configuration_survives_json(config: RunConfig) -> None:
    assert RunConfig.from_json(config.to_json()) == config


def changed(**changes: Any) -> str:
    """A configuration as JSON, with changes that its own checks do not see."""
    return json.dumps({**json.loads(run_config().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "run configuration is refused: "),
        ("[]", "run configuration is refused: Expected `object`, got `array`"),
        ('{"task": "digits/mlp"}', "run configuration is refused: Object missing required field `schema`"),
        ('{"schema": 7}', "run configuration has schema 7, this version reads 1"),
        ('{"schema": 1, "colour": "red"}', "run configuration has unknown entries colour"),
        ('{"schema": 1, "task": "digits/mlp"}', "is refused: Object missing required field `schedule`"),
        (changed(lr="fast"), r"is refused: Expected `float`, got `str` - at `\$\.lr`"),
        (changed(lr=True), "Expected `float`, got `bool`"),
        (changed(batch_size=None), "Expected `int`, got `null`"),
        (changed(total_steps=4.0), "Expected `int`, got `float`"),
        (changed(threads="2"), "Expected `int | null`, got `str`"),
        (changed(test=1), "Expected `bool`, got `int`"),
        (changed(seed=2**63), "seed must be at most 9223372036854775807, got 9223372036854775808"),
        (changed(meta={"evry": 3}), r"unknown entries meta\.evry"),
        (changed().replace("0.1", "1" * 400), "a number of 300 digits or more"),
        ('{"schema": 1, "task": ' + "[" * 100_000, "is refused: its JSON is nested too deeply"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig.from_json(text)


def test_learning_counts_steps_as_published() -> None:
    images = MetaConfig(every=300, in_epoch=383)
    assert [step for step in range(800) if images.learns_at(step)] == [299, 383 + 299]
    text = MetaConfig(every=300, in_epoch=650, first=True)
    assert [step for step in range(1400) if text.learns_at(step)] == [0, 300, 600, 650, 950, 1250, 1300]
    through = MetaConfig(every=300)
    assert [step for step in range(1000) if through.learns_at(step)] == [299, 599, 899]
    assert all(MetaConfig(every=1).learns_at(step) for step in range(5))
