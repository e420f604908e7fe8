"""One training loop, whole, replicated or sharded: the same joined batches, from which a rank takes its share."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import Optimizer

ROWS = 8  # of the joined batch


def network() -> nn.Sequential:
    """Of whose tensors four ranks get uneven parts, and the last of them sometimes none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def wrapped(model: nn.Sequential, kind: str) -> nn.Module:
    """The model as it is ("whole"), under DDP ("replicated"), under FSDP2 ("sharded", or "hybrid": in pairs of ranks
    that are replicas of each other), or with its layers cut by column and by row ("parallel")."""
    if kind == "replicated":
        return nn.parallel.DistributedDataParallel(model)
    if kind in ("sharded", "hybrid"):
        shape, names = (2, dist.get_world_size() // 2), ("replicas", "shards")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names) if kind == "hybrid" else None
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)
    if kind == "parallel":
        plan = {"0": ColwiseParallel(output_layouts=Replicate()), "3": RowwiseParallel(input_layouts=Replicate())}
        parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    return model


class Loop:
    """A classifier on random batches; ``make`` is given the (named) parameters of the wrapped model."""

    def __init__(
        self, kind: str, make: Callable[[list[tuple[str, nn.Parameter]]], Optimizer], device: str = "cpu"
    ) -> None:
        self.inner, self.device = network().to(device), device
        self.model = wrapped(self.inner, kind)
        self.optimizer = make(list(self.inner.named_parameters()))
        everything = kind in ("whole", "parallel")
        self.rank, self.ranks = (0, 1) if everything else (dist.get_rank(), dist.get_world_size())
        self.random = torch.Generator().manual_seed(1)

    def loss(self) -> Tensor:
        """The mean loss of this rank's share of the next joined batch."""
        x, y = self.draw()
        return nn.functional.cross_entropy(self.model(self._share(x)), self._share(y))

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next joined batch."""
        x, y = torch.randn(ROWS, 4, generator=self.random), torch.randint(3, (ROWS,), generator=self.random)
        return x.to(self.device), y.to(self.device)

    def backward(self) -> Tensor:
        """The loss, with its gradients."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def _share(self, rows: Tensor) -> Tensor:
        return rows.chunk(self.ranks)[self.rank]

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors, put together."""
        whole = {}
        for name, tensor in self.inner.state_dict().items():
            whole[name] = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
        return whole
