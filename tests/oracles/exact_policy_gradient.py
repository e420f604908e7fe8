"""The exact meta-gradient over all steps of a task, by differentiating through them: what evolution is to estimate."""

import torch
from torch import Tensor

from metastep.lab.evolution import Policy
from metastep.lab.evolution.population import fitness
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.evolution.vectorised_trainer import VectorisedTrainer, losses


def exact_gradient(spec: TaskSpec, policy: Policy, weights: Tensor, rate: float) -> tuple[float, Tensor]:
    """Return a network's fitness and its gradient by the weights of the policy, (N,), in float64; for SGD.

    The graph holds every step of the run: for short tasks only. Long runs near chaos have gradients that explode, which
    is why the training itself uses evolution strategies.

    Args:
        spec: the task.
        policy: what the schedule is made of.
        weights: of the schedule, (N,).
        rate: the initial rate.
    """
    trainer = VectorisedTrainer(spec, "sgd", policy, torch.tensor([rate]), dtype=torch.float64)
    given = weights.detach().double().clone().requires_grad_()
    parts = trainer.unpack(given[None])
    parameters = trainer.parameters.clone().requires_grad_()
    buffer = torch.zeros_like(parameters)
    training = []
    for _ in range(spec.steps):
        loss = losses(trainer.network, trainer.packing.split(parameters), trainer.data, trainer.next_batch())
        (gradient,) = torch.autograd.grad(loss.sum(), parameters, create_graph=True)
        trainer.parameters, trainer.optimizer.direction = parameters, buffer
        step = trainer.rate(parts, loss, gradient, gradient * buffer)
        buffer = spec.momentum * buffer + gradient + spec.weight_decay * parameters
        along = trainer.packing.of_parameters(step) if trainer.layered else step[:, None]
        parameters = parameters - along * buffer
        trainer.displacement_rate = step
        trainer.steps += 1
        training.append(loss)
    last = torch.stack(training[-max(1, spec.steps // 10) :]).mean(0)
    reached = fitness(
        last, losses(trainer.network, trainer.packing.split(parameters), trainer.data, trainer.validation)
    )
    (found,) = torch.autograd.grad(reached.sum(), given)
    return float(reached.detach()), found
