"""A step that an optimizer takes without moving: how the brake of a schedule skips one."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.core.distributed import local


class SkippedStep:
    """Makes the next step of an optimizer an empty one.

    Where the verdict is known on the host, the parameters have no gradient while the optimizer steps: torch's
    optimizers pass such parameters by, so that neither they nor their momenta, moments or step counts change. Where the
    verdict is on an accelerator, and stays there, the gradients are made zero: momenta and moments then decay by one
    step, the parameters keep still because their rate is 0, and nothing that is not finite gets anywhere.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._aside: list[tuple[nn.Parameter, Tensor]] = []

    def prepare(self, skip: bool | Tensor) -> None:
        """Call it before the step, with the verdict."""
        if skip is False:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if isinstance(skip, Tensor):
            with torch.no_grad():
                for parameter in parameters:
                    assert parameter.grad is not None
                    gradient = local(parameter.grad)
                    gradient.masked_fill_(skip.to(gradient.device), 0)
            return
        self._aside = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = None

    def over(self) -> None:
        """Call it after the step: gradients that were set aside are back."""
        for parameter, gradient in self._aside:
            if parameter.grad is None:
                parameter.grad = gradient
        self._aside = []
