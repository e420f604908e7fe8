"""The oracle of forward-mode hypergradients: K steps in one autograd graph, on one flat float64 vector.

Before every step the whole state is mixed with its own detached copy, mu x + (1 - mu) stop(x): the derivative through
the state is then mu times what it is.
"""

import torch


def steps_with_graph(theta, loss_at, eta, count, base, mu=1.0, factors=None, **p):
    """theta after every step, each with a graph to ``eta``; ``loss_at(theta, step)`` is the training loss."""
    momentum, dampening, decay = p.get("momentum", 0.0), p.get("dampening", 0.0), p.get("weight_decay", 0.0)
    (b1, b2), eps = p.get("betas", (0.9, 0.999)), p.get("eps", 1e-8)
    v, m, s = None, torch.zeros_like(theta), torch.zeros_like(theta)
    found = []
    for k in range(count):
        theta, m, s = (mu * x + (1 - mu) * x.detach() for x in (theta, m, s))
        if not theta.requires_grad:
            theta = theta.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss_at(theta, k), theta, create_graph=True)
        raw, g = g, g + decay * theta
        if base == "sgd":
            if momentum == 0:
                u = g
            else:
                v = g if v is None else momentum * (mu * v + (1 - mu) * v.detach()) + (1 - dampening) * g
                u = g + momentum * v if p.get("nesterov") else v
        else:
            used = raw if base == "adamw" else g
            m, s = b1 * m + (1 - b1) * used, b2 * s + (1 - b2) * used * used
            u = (m / (1 - b1 ** (k + 1))) / ((s / (1 - b2 ** (k + 1))).sqrt() + eps)
            if base == "adamw":
                u = u + decay * theta
        theta = theta - (1.0 if factors is None else factors[k]) * eta * u
        found.append(theta)
    return found
