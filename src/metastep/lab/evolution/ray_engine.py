"""The populations of a meta-step as tasks of a Ray cluster; what is lost costs that population only."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from metastep.lab.evolution.jobs import Found, Job
from metastep.lab.runtime.ray_start import ray_started


class RayEngine:
    """Trains each population of a step in an actor of its own, all at once.

    What they find comes in the order of the jobs, whoever is first: a run is the same with and without Ray. A
    population whose actor dies is left out of its step; a new actor takes its place for the next.

    Args:
        address: of a running cluster ("auto", "ray://host:10001", ...); None starts one on this machine.

    Raises:
        ModuleNotFoundError: without ray.
        ConnectionError: if there is no cluster at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray, self._ours = ray_started(address)
        self.actors: list[Any] = []

    def __call__(self, work: Callable[[Job], Found], jobs: Sequence[Job]) -> list[Found | None]:
        """What the work returned for each job, None for one that was lost."""
        while len(self.actors) < len(jobs):
            self.actors.append(self._ray.remote(num_cpus=self._share(len(jobs)))(_Worker).remote())
        pending = [actor.do.remote(work, job) for actor, job in zip(self.actors, jobs, strict=False)]
        return [self._result(number, reference) for number, reference in enumerate(pending)]

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in self.actors:
            self._ray.kill(actor)
        self.actors = []
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _result(self, number: int, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            self.actors[number] = self._ray.remote(num_cpus=self._share(len(self.actors)))(_Worker).remote()
            return None

    def _share(self, actors: int) -> float:
        """One CPU each, or so much less that all have room: Ray counts in ten-thousandths."""
        total = float(self._ray.cluster_resources().get("CPU", 0))
        return 1.0 if total >= actors else int(total / actors * 1000) / 1000


class _Worker:
    """What runs in an actor."""

    def do(self, work: Callable[[Job], Found], job: Job) -> Found:
        """Train a population."""
        return work(job)
