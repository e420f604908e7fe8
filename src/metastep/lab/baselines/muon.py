"""Muon for the weight matrices of a network, AdamW for everything else, in one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    r"""Muon on the hidden layers' weights, AdamW on embeddings, the last layer, biases and norms.

    Torch's Muon takes matrices; a convolution's kernel of shape (out, in, height, width) is one of shape
    (out, in · height · width) to it. Its steps are scaled by :math:`0.2 \sqrt{\max(m, n)}`, so that one rate and one
    weight decay suit both parts.

    Args:
        params: the model's parameters.
        lr: of both parts, >= 0.
        weight_decay: of both parts, decoupled, >= 0.
        momentum: of Muon, >= 0.
        betas: of AdamW, each in [0, 1).
        model: the network; tells what is an embedding. None: nothing is.

    Source: K. Jordan et al. 2024 (Muon); arXiv 2502.16982 (the scale, and the decay).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = MuonAdamW(net.parameters())
        >>> [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
        [(8, 4)]
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        model: nn.Module | None = None,
    ) -> None:
        parameters = list(params)
        matrices = hidden_weights(parameters, model)
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": part} for part in (matrices, rest) if part]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        # views share their storage with the parameters, whose shape torch's Muon does not take
        self._views = [(p, nn.Parameter(p.detach().flatten(1))) for p in matrices]
        views = [view for _, view in self._views]
        self._muon = (
            Muon(views, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            if views
            else None
        )
        self._adamw = AdamW(rest, lr=lr, weight_decay=weight_decay, betas=betas) if rest else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, group in zip(filter(None, (self._muon, self._adamw)), self.param_groups, strict=True):
            for key in ("lr", "weight_decay"):
                optimizer.param_groups[0][key] = group[key]
        if self._muon is not None:
            for parameter, view in self._views:
                view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
                self._muon.state[view] = self.state[parameter]
            self._muon.step()  # type: ignore[no-untyped-call]
        if self._adamw is not None:
            for parameter in self._adamw.param_groups[0]["params"]:
                self._adamw.state[parameter] = self.state[parameter]
            self._adamw.step()
        return loss


def hidden_weights(parameters: list[nn.Parameter], model: nn.Module | None) -> list[nn.Parameter]:
    """The weights of two dimensions and more, but for embeddings and those of the last layer, which gives the outputs.

    Args:
        parameters: of the model, in its order.
        model: tells what is an embedding, and which layer is the last if that shares its weights with one; None: the
            last of the weights are the last layer's.
    """
    weights = [p for p in parameters if p.requires_grad and p.ndim >= 2]
    modules = [] if model is None else list(model.modules())
    apart = {id(m.weight) for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    own = [[p for p in module.parameters(recurse=False) if p.ndim >= 2] for module in modules]
    apart |= {id(p) for p in next((last for last in reversed(own) if last), weights[-1:])}
    return [p for p in weights if id(p) not in apart]
