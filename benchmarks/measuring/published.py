"""Hypergradient descent at the global level as its first published code does it, to be timed beside ours.

Tensor by tensor, without fused kernels: SGD with momentum concatenates all gradients and all last directions to take
their inner product, Adam takes it tensor by tensor (arXiv 1703.04782, algorithms 2 and 3; what is known of the code is
that it works this way, the lines are ours). AdamHD there uses each partial sum at once; so does this.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer


class PublishedSGDHD(Optimizer):
    """alpha <- alpha + beta <g_t, u_{t-1}>, then momentum SGD."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float, hypergrad_lr: float = 1e-6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "hypergrad_lr": hypergrad_lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step on gradients that are there."""
        for group in self.param_groups:
            gradient = torch.cat([p.grad.reshape(-1) for p in group["params"]])
            if "last" in group:
                group["lr"] = group["lr"] + group["hypergrad_lr"] * torch.dot(gradient, group["last"])
            directions = []
            for p in group["params"]:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                directions.append(state["momentum_buffer"].reshape(-1))
                p.sub_(group["lr"] * state["momentum_buffer"])
            group["last"] = torch.cat(directions)


class PublishedAdamHD(Optimizer):
    """The same with Adam's direction, recovered from its moments."""

    def __init__(self, params: list[Tensor], lr: float, hypergrad_lr: float = 1e-9) -> None:
        super().__init__(params, {"lr": lr, "hypergrad_lr": hypergrad_lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step on gradients that are there."""
        for group in self.param_groups:
            (b1, b2), eps = group["betas"], group["eps"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                m, v, t = state["m"], state["v"], state["t"]
                if t > 0:
                    last = (m / (v.sqrt() + eps)).mul_((1 - b2**t) ** 0.5 / (1 - b1**t))
                    group["lr"] = group["lr"] + group["hypergrad_lr"] * torch.dot(p.grad.reshape(-1), last.reshape(-1))
                state["t"] = t = t + 1
                m.mul_(b1).add_(p.grad, alpha=1 - b1)
                v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                rate = group["lr"] * ((1 - b2**t) ** 0.5 / (1 - b1**t))
                p.sub_(rate * (m / (v.sqrt() + eps)))
