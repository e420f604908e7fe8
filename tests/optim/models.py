"""The small network, its data and the optimizers that every test of this room runs over."""

import torch

import metastep.optim as ours

ALL_LEVELS = ("global", "layer", "unit", "parameter")

# name: (ours, torch's, arguments)
VARIANTS = {
    "sgd": (ours.HyperSGD, torch.optim.SGD, {}),
    "sgd-decay": (ours.HyperSGD, torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": (ours.HyperSGD, torch.optim.SGD, {"momentum": 0.9}),
    "dampening": (ours.HyperSGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "nesterov": (ours.HyperSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (ours.HyperAdam, torch.optim.Adam, {}),
    "amsgrad": (ours.HyperAdam, torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    "adamw": (ours.HyperAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "rmsprop": (ours.HyperRMSprop, torch.optim.RMSprop, {}),
    "centered": (
        ours.HyperRMSprop,
        torch.optim.RMSprop,
        {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-3},
    ),
    "adagrad": (ours.HyperAdagrad, torch.optim.Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}),
}
CLASSES = {"sgd": {"momentum": 0.9}, "adam": {}, "adamw": {}, "rmsprop": {}, "adagrad": {}}


def network(dtype=torch.float64, seed=0):
    """Convolution, transposed convolution, linear layers; biases throughout: 8 tensors, 185 elements."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 2),
        torch.nn.Tanh(),
        torch.nn.ConvTranspose2d(3, 2, 2),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(18, 5),
        torch.nn.Tanh(),
        torch.nn.Linear(5, 2),
    ).to(dtype)


def batch(step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def loss_of(model, step, dtype=torch.float64):
    x, y = batch(step, dtype)
    return (model(x) - y).square().mean()


def train(model, optimizer, steps, start=0, dtype=torch.float64):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step, dtype).backward()
        optimizer.step()


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])
