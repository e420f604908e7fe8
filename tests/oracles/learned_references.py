"""Readable references of the learned optimizers: the LSTM written out, one coordinate after the other, in float64."""

import math

import torch


def lstm_cell(x, h, c, weights):
    """torch's gate order: input, forget, cell, output."""
    w_in, w_hidden, b_in, b_hidden = weights
    i, f, g, o = (w_in @ x + b_in + w_hidden @ h + b_hidden).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def stack(weights, x, states):
    """Two cells and a linear output; ``states`` is a list of (h, c), changed in place."""
    for layer, (h, c) in enumerate(states):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        states[layer] = lstm_cell(x, h, c, [weights[f"cells.{layer}.{name}"] for name in names])
        x = states[layer][0]
    return float(weights["output.weight"] @ x + weights["output.bias"])


def fresh():
    return [(torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)) for _ in range(2)]


def l2l(weights, gradients, lr=0.01, k=5.0):
    """The steps that one coordinate takes under these gradients."""
    states, steps = fresh(), []
    for g in gradients:
        x = [max(math.log(abs(g) + torch.finfo(torch.float64).eps) / k, -1.0), min(max(math.exp(k) * g, -1.0), 1.0)]
        steps.append(lr * stack(weights, torch.tensor(x, dtype=torch.float64), states))
    return steps


def rnnprop(weights, gradients, lr=0.1, beta=0.95):
    """The steps that one coordinate takes under these gradients."""
    states, steps, m, v = fresh(), [], 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g * g
        s = math.sqrt(v / (1 - beta**t)) + 1e-8
        x = torch.tensor([g / s, m / (1 - beta**t) / s], dtype=torch.float64)
        x = weights["embedding.weight"] @ x + weights["embedding.bias"]
        steps.append(-lr * math.tanh(stack(weights, torch.where(x > 0, x, x.exp() - 1), states)))
    return steps
