"""Writes hyper_states.pt with the package at commit 304db44: states of every optimizer, and how their runs went on.

git archive 304db44 src | tar -x -C OLD; PYTHONPATH=OLD/src python tests/optim/samples/make_states.py FILE
"""

import sys

import torch

import metastep as ms

ALL = ("global", "layer", "unit", "parameter")
PULL = {("layer", "global"): 0.2, ("parameter", "previous"): 0.1}
CASES = {
    "HyperSGD": lambda p: ms.HyperSGD(p, lr=0.05, momentum=0.9, nesterov=True, levels=ALL),
    "HyperSGD, frozen": lambda p: ms.HyperSGD(p, lr=0.05, momentum=0.9, hyper_lr=0.0, weight_lr=0.0),
    "HyperSGD, rule function": lambda p: ms.HyperSGD(p, lr=0.05, rule=lambda r: torch.optim.Adam(r, lr=0.05)),
    "HyperSGD, pull": lambda p: ms.HyperSGD(p, lr=0.05, levels=ALL, pull=PULL, pull_form="virtual"),
    "HyperAdam": lambda p: ms.HyperAdam(p, lr=0.05, amsgrad=True, levels=("layer", "unit"), rule="log", hyper_lr=0.1),
    "HyperAdamW": lambda p: ms.HyperAdamW(p, lr=0.05, weight_decay=0.1, include_decay=True, combine="softmax"),
    "HyperRMSprop": lambda p: ms.HyperRMSprop(p, lr=0.05, centered=True, rule="additive", hyper_lr=1e-3),
    "HyperAdagrad": lambda p: ms.HyperAdagrad(p, lr=0.05, hyper_lr={"global": 0.1, "layer": 0.2}),
    "Hyper": lambda p: ms.Hyper(torch.optim.NAdam(p, lr=0.05), levels=ALL),
}


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    """A matrix and a vector."""
    return [
        ("weight", torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(4, 3))),
        ("bias", torch.nn.Parameter(torch.linspace(0, 1, 4))),
    ]


def train(optimizer: torch.optim.Optimizer, named: list[tuple[str, torch.nn.Parameter]], steps: range) -> None:
    """Steps down a bowl that moves a little in each of them."""
    for step in steps:
        for _, p in named:
            p.grad = p.detach() * (1 + 0.3 * step) - 0.1 * step
        optimizer.step()


def main(path: str) -> None:
    """Write the file."""
    result = {}
    for name, make in CASES.items():
        named = parameters()
        optimizer = make(named)
        train(optimizer, named, range(4))
        state = optimizer.state_dict()
        kept = [p.detach().clone() for _, p in named]
        torch.save(state, path)  # what is written is what the state was, not what becomes of it
        saved = torch.load(path, weights_only=True)
        train(optimizer, named, range(4, 8))
        result[name] = {"state": saved, "parameters": kept, "continued": [p.detach().clone() for _, p in named]}
    torch.save(result, path)


if __name__ == "__main__":
    main(sys.argv[1])
