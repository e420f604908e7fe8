"""A long task in training over many meta-steps, one unroll in each: persistent evolution strategies."""

from dataclasses import asdict, replace
from typing import Any, Self

from torch import Tensor

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.jobs import Job, Outcome, judge


class LongTask:
    """A population that goes on where it was at each call; the perturbations of its unrolls add up.

    Args:
        job: the population.
        unroll: steps a call.
    """

    def __init__(self, job: Job, unroll: int) -> None:
        self.job, self.unroll = job, unroll
        self.members = job.members()
        self.perturbations = job.perturbations(persistent=True)

    @property
    def finished(self) -> bool:
        """Whether its T steps are done."""
        return self.members.finished

    def advance(self, center: Tensor) -> Outcome:
        """Take one unroll around the present weights and judge the members by the losses they are at."""
        weights = self.perturbations.around(center.to(self.job.device))
        training = self.members.advance(weights, self.unroll)
        return judge(self.perturbations, training, self.members.validate())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, with the job but for its policy and base."""
        job = {**asdict(replace(self.job, policy=self.job.policy)), "spec": self.job.spec.as_dict()}
        del job["policy"], job["base"]
        return {
            "job": {**job, "log_rates": list(self.job.log_rates)},
            "members": self.members.state_dict(),
            "perturbations": self.perturbations.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], like: dict[str, Any], unroll: int) -> Self:
        """The task of :meth:`state_dict`.

        Args:
            state: what was saved.
            like: the policy and base.
            unroll: steps a call.
        """
        saved = state["job"]
        spec, log_rates = TaskSpec.from_dict(saved["spec"]), tuple(saved["log_rates"])
        task = cls(Job(**{**saved, **like, "spec": spec, "log_rates": log_rates}), unroll)
        task.members.load_state_dict(state["members"])
        task.perturbations.load_state_dict(state["perturbations"])
        return task
