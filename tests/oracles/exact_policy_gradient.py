"""The exact meta-gradient over all steps of a task, by differentiating through them: what evolution is to estimate."""

import torch
from torch import Tensor

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.jobs import fitness
from metastep.lab.evolution.members import Members, losses
from metastep.lab.evolution.policy import Policy


def exact_gradient(spec: TaskSpec, policy: Policy, weights: Tensor, rate: float) -> tuple[float, Tensor]:
    """Return a member's fitness and its gradient by the weights of the policy, (N,), in float64; for SGD.

    The graph holds every step of the run: for short tasks only. Long runs near chaos have gradients that explode, which
    is why the training itself uses evolution strategies.

    Args:
        spec: the task.
        policy: what the schedule is made of.
        weights: of the schedule, (N,).
        rate: the initial rate.
    """
    members = Members(spec, "sgd", policy, torch.tensor([rate]), dtype=torch.float64)
    given = weights.detach().double().clone().requires_grad_()
    parts = members.unpack(given[None])
    parameters = members.parameters.clone().requires_grad_()
    buffer = torch.zeros_like(parameters)
    training = []
    for _ in range(spec.steps):
        loss = losses(members.network, members.layout.split(parameters), members.data, members.next_batch())
        (gradient,) = torch.autograd.grad(loss.sum(), parameters, create_graph=True)
        members.parameters, members.rule.direction = parameters, buffer
        step = members.rate(parts, loss, gradient, gradient * buffer)
        buffer = spec.momentum * buffer + gradient + spec.weight_decay * parameters
        along = members.layout.of_parameters(step) if members.layered else step[:, None]
        parameters = parameters - along * buffer
        members.displacement_rate = step
        members.steps += 1
        training.append(loss)
    last = torch.stack(training[-max(1, spec.steps // 10) :]).mean(0)
    reached = fitness(last, losses(members.network, members.layout.split(parameters), members.data, members.validation))
    (found,) = torch.autograd.grad(reached.sum(), given)
    return float(reached.detach()), found
