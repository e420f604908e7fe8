"""Populations on Ray actors: the same outcomes as here, and a dead actor costs its own population only."""

import dataclasses
from functools import partial

import pytest
import torch

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.jobs import Job, evaluate
from metastep.lab.evolution.policy import Policy

ray = pytest.importorskip("ray")


@pytest.mark.filterwarnings("ignore")
def test_actors_give_the_same_outcomes_and_one_that_dies_is_replaced(policy: Policy, spec: TaskSpec) -> None:
    from metastep.lab.evolution.ray_engine import RayEngine

    jobs = [
        Job(dataclasses.replace(spec, seed=seed), "sgd", policy, (-3.0, -2.0), 0.05, seed, True, True)
        for seed in (1, 2)
    ]
    work = partial(evaluate, center=torch.zeros(policy.size))
    with RayEngine() as engine:
        first = engine(work, jobs)
        for outcome, job in zip(first, jobs, strict=True):
            assert outcome is not None
            assert outcome.gradient is not None
            torch.testing.assert_close(outcome.gradient, work(job).gradient)
        ray.kill(engine.actors[0])
        lost, kept = engine(work, jobs)
        assert lost is None
        assert kept is not None
        assert all(outcome is not None for outcome in engine(work, jobs))
