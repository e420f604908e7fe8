"""Statistics of batch norm for averaged weights, with which no batch was ever seen."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from metastep.lab.bench.config import RunConfig
from metastep.lab.tasks import Task

#: So many training batches are looked at, or those of an epoch if they are fewer.
BATCHES = 50


def recalibration(config: RunConfig, task: Task) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Return a context within which a network's batch norms have the statistics of training data at its weights.

    Those are the means over the first batches of a training stream of its own, augmented as in training. Afterwards
    buffers, modes and torch's random streams are as before.

    Args:
        config: the run's, for seed, batch size and device.
        task: its data.
    """

    @contextmanager
    def recalibrated(network: nn.Module) -> Iterator[None]:
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            yield
            return
        kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        try:
            _measure(network, config, task)
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)

    return recalibrated


def _measure(network: nn.Module, config: RunConfig, task: Task) -> None:
    modes = [(module, module.training) for module in network.modules()]
    stream = task.batches("train", batch_size=config.batch_size, seed=config.seed, device=config.device)
    count = min(BATCHES, task.steps_per_epoch(config.batch_size))
    device = torch.device(config.device)
    forked = [] if device.type == "cpu" else [device.index or 0]
    try:
        with torch.random.fork_rng(devices=forked, device_type="cuda" if device.type == "cpu" else device.type):
            update_bn((batch.inputs for batch in islice(stream, count)), network)
    finally:
        for module, mode in modes:
            module.training = mode
