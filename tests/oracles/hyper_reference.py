"""The reference implementation of the hypergradient optimizers: flat float64 vectors, from the specification.

All N elements of all tensors lie in one vector; at every level `ids` says to which group an element belongs. Nothing
here is shared with the package: rates are stored as they are, not as deviations, and every formula is written out
again.
"""

import math

import torch

F64 = torch.float64


def group_ids(shapes, unit_dims):
    """Per level the group of each element: one; one per tensor, per unit (a vector is one unit), per element."""
    layer, unit, next_unit = [], [], 0
    for k, (shape, dim) in enumerate(zip(shapes, unit_dims, strict=True)):
        numel = math.prod(shape)
        layer.append(torch.full((numel,), k))
        if dim is None:
            unit.append(torch.full((numel,), next_unit))
            next_unit += 1
        else:
            view = [1] * len(shape)
            view[dim] = shape[dim]
            unit.append((torch.arange(shape[dim]).view(view).expand(shape) + next_unit).reshape(-1))
            next_unit += shape[dim]
    layer, unit = torch.cat(layer), torch.cat(unit)
    return {
        "global": torch.zeros_like(layer),
        "layer": layer,
        "unit": unit,
        "parameter": torch.arange(layer.numel()),
    }


def group_sum(values, ids):
    return torch.zeros(int(ids.max()) + 1, dtype=F64).index_add(0, ids, values)


class Direction:
    """u_t of table A.3 from g~_t, by name of the base optimizer."""

    def __init__(self, base, n, **p):
        self.base, self.p, self.t = base, p, 0
        self.v, self.m, self.vmax, self.b = (torch.zeros(n, dtype=F64) for _ in range(4))

    def __call__(self, g):
        self.t += 1
        t, p = self.t, self.p
        if self.base == "sgd":
            mu = p.get("momentum", 0.0)
            if mu == 0:
                return g
            self.v = g.clone() if t == 1 else mu * self.v + (1 - p.get("dampening", 0.0)) * g
            return g + mu * self.v if p.get("nesterov") else self.v
        if self.base == "adam":
            b1, b2 = p.get("betas", (0.9, 0.999))
            self.m, self.v = b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g * g
            self.vmax = torch.maximum(self.vmax, self.v)
            v = self.vmax if p.get("amsgrad") else self.v
            return (self.m / (1 - b1**t)) / (v.sqrt() / math.sqrt(1 - b2**t) + p.get("eps", 1e-8))
        if self.base == "rmsprop":
            rho = p.get("alpha", 0.99)
            self.v, self.m = rho * self.v + (1 - rho) * g * g, rho * self.m + (1 - rho) * g
            a = (self.v - self.m**2 if p.get("centered") else self.v).sqrt() + p.get("eps", 1e-8)
            if p.get("momentum", 0) == 0:
                return g / a
            self.b = p["momentum"] * self.b + g / a
            return self.b
        assert self.base == "adagrad"
        self.v = self.v + g * g
        return g / (self.v.sqrt() + p.get("eps", 1e-10)) / (1 + (t - 1) * p.get("lr_decay", 0.0))


class Reference:
    """C.3 on flat vectors: one call of `step` is one optimizer step."""

    def __init__(
        self, theta, ids, direction, *, lr, levels, rule, hyper_lr, gamma, weight_lr=0.0, combine="project",
        scaled=True, reduce="sum", weight_decay=0.0, decoupled=0.0, objective="regularized", include_decay=False,
        pull=None, pull_form="implicit", safeguard=False,
    ):  # fmt: skip
        self.theta, self.ids, self.direction = theta.clone(), ids, direction
        self.levels, self.rule, self.beta, self.delta = levels, rule, hyper_lr, weight_lr
        self.combine, self.scaled, self.reduce = combine, scaled, reduce
        self.wd, self.decoupled, self.objective, self.include_decay = weight_decay, decoupled, objective, include_decay
        self.pull, self.pull_form = pull, pull_form
        self.lr = lr
        self.alpha = {j: torch.full((int(ids[j].max()) + 1,), lr, dtype=F64) for j in levels}
        self.gamma = dict(gamma) if pull is None else {j: float(j == levels[-1]) for j in levels}
        self.u_prev = None
        self.safeguard, self.usual, self.cut, self.warming = safeguard, None, 0.1 if safeguard else 1.0, True

    def alpha_star(self):
        return sum(self.gamma[j] * self.alpha[j][self.ids[j]] for j in self.levels)

    def step(self, g, schedule=1.0):
        """g: gradient of the data loss at theta; schedule: what a scheduler multiplies the rates with in this step."""
        g_tilde = g + self.wd * self.theta
        if self.u_prev is not None:
            judged = g_tilde if self.objective == "regularized" else g
            if self.safeguard:
                self.look(judged)
            self.adapt(judged)
        schedule = schedule * self.cut
        u = self.direction(g_tilde)
        d = u + self.decoupled * self.theta
        rate = schedule * self.alpha_star()
        if self.safeguard and self.decoupled:
            rate = rate.clamp(max=max(0.02, self.lr * self.decoupled) / self.decoupled)
        self.theta = self.theta - rate * d
        self.u_prev, self.schedule = (d if self.include_decay else u), schedule

    def look(self, g):
        """The safeguard: cut the rates where the last step ran into a slope of more than 1.5 usual gradients."""
        norm = math.log(float(g.norm()))
        usual = norm if self.usual is None else self.usual
        last = self.schedule * self.alpha_star() * self.u_prev
        if "parameter" in self.levels:  # single elements count as they stood at the start
            moved = self.gamma["parameter"] * (self.alpha["parameter"] - self.lr)
            size = float((last - self.schedule * moved * self.u_prev).norm())
        else:
            size = float(last.norm())
        cosine = min(max(float(g @ last) / (float(g.norm()) * size), -1.0), 1.0)
        slope = -cosine * math.exp(norm - usual)
        if slope > 1.5:
            self.cut, self.warming = max(self.cut * max(1 / (1 + slope), 0.01), 1e-4), False
        else:
            self.cut = min((1.75 if self.warming else 1.01) * self.cut, 1.0)
        self.usual = 0.9 * usual + 0.1 * norm

    def adapt(self, g):
        u = self.schedule * self.u_prev
        s = -g * u
        h = {j: group_sum(s, self.ids[j]) for j in self.levels}
        count = {j: group_sum(torch.ones_like(s), self.ids[j]) for j in self.levels}
        G = {j: (self.alpha[j] * h[j]).sum() for j in self.levels}
        if self.rule in ("exponentiated", "cosine"):
            coarse = sum(
                self.gamma[j] * (self.alpha[j][self.ids[j]] if j != "parameter" else self.lr) for j in self.levels
            )
            size = g.norm() * (coarse * u).norm()
            G = {j: G[j] / size for j in self.levels}
        hat = {}
        for j in self.levels:
            f = self.gamma[j] if self.scaled and self.pull is None else 1.0
            norms = (group_sum(g * g, self.ids[j]) * group_sum(u * u, self.ids[j])).sqrt()
            c = torch.where(norms > 0, -h[j] / norms, 0.0)
            mean = h[j] / count[j] if self.reduce == "mean" and j != "parameter" else h[j]
            if self.rule == "additive":
                hat[j] = self.alpha[j] - self.beta[j] * f * mean
            elif self.rule == "log":
                hat[j] = self.alpha[j] * (-self.beta[j] * f * self.alpha[j] * mean).exp()
            elif self.rule == "cosine":
                hat[j] = self.alpha[j] * (1 + self.beta[j] * f * c)
            else:
                hat[j] = self.alpha[j] * (self.beta[j] * f * c).exp()
        old = self.alpha
        self.alpha = hat if self.pull is None else self.regularized(hat, old)
        if self.delta and self.pull is None:
            self.gamma = self.moved_weights(G)

    def regularized(self, hat, old):
        """B.2, B.3: parents before children; weights are given, not strengths."""
        new = dict(hat)
        for j in self.levels:
            weights = {k: w for (child, k), w in self.pull.items() if child == j}
            if not weights:
                continue

            def seen(rates, k, j=j):
                """Level k's rates as the groups of level j see them."""
                first = torch.zeros(hat[j].numel(), dtype=torch.int64)
                first[self.ids[j]] = self.ids[k]
                return rates[k][first]

            value = hat[j]
            if self.pull_form == "explicit":
                for k, w in weights.items():
                    if k != "previous":
                        value = value - w * (old[j] - seen(old, k))
            else:
                parents = new if self.pull_form == "implicit" else hat
                value = (1 - sum(weights.values())) * hat[j]
                for k, w in weights.items():
                    value = value + w * (old[j] if k == "previous" else seen(parents, k))
            new[j] = value
        return new

    def moved_weights(self, G):
        names = list(self.levels)
        gamma = torch.tensor([self.gamma[j] for j in names], dtype=F64)
        slopes = torch.stack([G[j] for j in names])
        if self.combine == "softmax":
            z = gamma.log() - self.delta * gamma * (slopes - (gamma * slopes).sum())
            moved = z.exp() / z.exp().sum()
        else:
            y = gamma - self.delta * (slopes - slopes.mean() if self.combine == "project" else slopes)
            y = y.clamp(min=1e-8)
            moved = y / y.sum()
        return dict(zip(names, moved.tolist(), strict=True))
