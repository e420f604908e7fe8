"""Readable references of the baselines, on one flat float64 vector, from their equations and nothing of the package.

Each is a generator: it is sent the pair that a step needs and yields (theta after the step, rate of the step).
"""

import math

import torch


def l4(theta, lr=0.15, adam=False, decay=0.9, beta2=0.999, eps=1e-4):
    mean, second, lowest, t = torch.zeros_like(theta), torch.zeros_like(theta), None, 0
    rate = 0.0
    while True:
        loss, g = yield theta, rate
        t += 1
        lowest = 0.75 * loss if lowest is None else min(lowest, loss)
        mean = decay * mean + (1 - decay) * g
        second = beta2 * second + (1 - beta2) * g * g
        corrected = mean / (1 - decay**t)
        v = corrected / ((second / (1 - beta2**t)).sqrt() + eps) if adam else corrected
        rate = lr * (loss - 0.9 * lowest) / (float(corrected @ v) + 1e-12)
        theta = theta - rate * v
        lowest = lowest * (1 + 1 / 1000)


def sps(theta, variant, lr=1.0, c=0.5, f_star=0.0, n=256):
    rate, last = 0.0, lr
    while True:
        loss, g = yield theta, rate
        polyak = (loss - f_star) / (c * float(g @ g) + 1e-8)
        if variant == "plain":
            rate = lr * polyak
        elif variant == "max":
            rate = min(polyak, lr)
        else:
            rate = last = min(2 ** (1 / n) * last, polyak)
        theta = theta - rate * g


def dfw(theta, lr=0.1, mu=0.9, decay=0.0, eps=1e-5):
    z, rate = torch.zeros_like(theta), 0.0
    while True:
        loss, g = yield theta, rate
        r = decay * theta
        gamma = min(max((loss - lr * float(g @ r)) / (lr * float(g @ g) + eps), 0.0), 1.0)
        rate = lr * gamma
        z = mu * z - rate * (g + r)
        theta = theta - lr * (r + gamma * g) + mu * z


def armijo(theta, loss_at, lr=1.0, c=0.1, n=256, max_trials=100):
    """Sent (step, gradient); ``loss_at(theta, step)`` is the loss of that step's batch."""
    rate = last = lr
    while True:
        step, g = yield theta, rate
        before, square = loss_at(theta, step), float(g @ g)
        rate = 2 ** (1 / n) * last
        for _ in range(max_trials):
            if loss_at(theta - rate * g, step) <= before - c * rate * square:
                break
            rate *= 0.9
        else:
            rate = 1e-6
        last = rate
        theta = theta - rate * g


def goldstein(theta, loss_at, lr=1.0, c=0.1, n=256, max_trials=100, most=10.0):
    """As the authors' search: shrink by 0.9 where the loss fell too little, double where it fell too much."""
    rate = last = lr
    while True:
        step, g = yield theta, rate
        before, square = loss_at(theta, step), float(g @ g)
        rate, good = 2 ** (1 / n) * last, None
        for _ in range(max_trials):
            after = loss_at(theta - rate * g, step)
            if after > before - c * rate * square:
                rate = max(0.9 * rate, 1e-8)
                continue
            good = rate
            if after >= before - (1 - c) * rate * square or rate >= most:
                break
            rate = min(2 * rate, most)
        rate = last = 1e-6 if good is None else good
        theta = theta - rate * g


def sasa(theta, quantile, lr=1.0, beta=0.9, nu=1.0, decay=0.0, keep=8, least=1000, warmup=1000, every=100, iid=False):
    """``quantile(p, freedom)`` is Student's; batch means unless ``iid``."""
    h, alpha, ys, t, dropped = torch.zeros_like(theta), lr, [], 0, False
    while True:
        _, g = yield theta, alpha
        t += 1
        g = g + decay * theta
        h = beta * h + (1 - beta) * g
        d = (1 - nu) * g + nu * h
        theta, used = theta - alpha * d, alpha
        ys.append(float(theta @ d + used / 2 * d @ d))
        kept = ys[len(ys) - len(ys) // keep :]
        if t <= warmup or t % every or len(kept) <= least:
            continue
        y, n = torch.tensor(kept, dtype=torch.float64), len(kept)
        if iid:
            deviation, freedom = float(y.std()), n - 1
        else:
            b = int(math.sqrt(n))
            batches = torch.stack([y[i * b : (i + 1) * b].mean() for i in range(n // b)])
            deviation = math.sqrt(b * float(((batches - y.mean()) ** 2).sum()) / (n // b - 1))
            freedom = n // b - 1
        width = deviation * quantile(0.975, freedom) / math.sqrt(n)
        first, second = float(y[: n // 2].mean()), float(y[n // 2 :].mean())
        still = abs(float(y.mean())) < width and first * second > 0
        if not dropped:
            still = still and abs(first) < width and abs(second) < width
        if still:
            alpha, ys, h, dropped = alpha / 10, [], torch.zeros_like(theta), True


class Adam:
    """Adam's direction, its moments corrected for their start."""

    def __init__(self, theta, beta1=0.9, beta2=0.999):
        self.m, self.v, self.t = torch.zeros_like(theta), torch.zeros_like(theta), 0
        self.beta1, self.beta2 = beta1, beta2

    def __call__(self, g):
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        return (self.m / (1 - self.beta1**self.t)) / ((self.v / (1 - self.beta2**self.t)).sqrt() + 1e-8)


def mechanic(theta, lr=1.0, weight_decay=0.0, s_init=1e-6, decay=1e-2, n=6):
    start, delta, adam, rate = theta.clone(), torch.zeros_like(theta), Adam(theta), 0.0
    betas = torch.tensor([1 - 10.0**-i for i in range(1, n + 1)], dtype=theta.dtype)
    s, (m, v, r) = torch.full_like(betas, s_init), torch.zeros(3, n, dtype=theta.dtype)
    while True:
        _, g = yield theta, rate
        h = float((g + decay * s.sum() * g.norm() / (theta.norm() + 1e-8) * theta) @ delta)
        r = betas * r - s * torch.minimum(torch.maximum(torch.full_like(m, h), -m), m)
        m = torch.maximum(betas * m, torch.full_like(m, abs(h) + 1e-8))
        v = betas**2 * v + h**2
        s = (s_init / n * m + r.clamp(min=0)) / (v.sqrt() + 1e-8)
        delta = delta - lr * (adam(g) + weight_decay * theta)
        theta, rate = start + s.sum() * delta, lr * float(s.sum())


def gen(theta, loss_at, lr=1e-4, every=4, weight_decay=0.0):
    """Sent (step, gradient); ``loss_at(theta, step)`` is the loss of that step's batch."""
    adam, rate, t = Adam(theta), lr, 0
    while True:
        step, g = yield theta, rate
        t += 1
        u = adam(g) + weight_decay * theta
        if t % every == 0:
            here, ahead, behind = (loss_at(theta - eta * u, step) for eta in (0.0, rate, -rate))
            # L(theta - eta u) = L - b eta + a eta^2 / 2
            b, a = (behind - ahead) / (2 * rate), (ahead + behind - 2 * here) / rate**2
            if a > 0 and b > 0:
                rate = 0.9 * rate + 0.1 * min(max(b / a, rate / 2), 2 * rate)
        theta = theta - rate * u


def schedule_free_plus(theta, lr=1.0, decay=0.0, beta=0.9, most=0.965, anneal=0, after=0, r=0.0):
    """Yields y, where gradients are taken."""
    x, y, z, adam, rate, largest, weights, t = theta, theta, theta, Adam(theta, beta2=0.95), 0.0, 0.0, 0.0, 0
    while True:
        loss, g = yield y, rate
        share = min(t / anneal, 1.0) if anneal else 0.0
        b = 1 - math.exp((1 - share) * math.log(1 - beta) + share * math.log(1 - most))
        rate = lr * max(0.0, loss + b * float(g @ (z - x))) / (float(g.abs().sum()) * math.sqrt(math.pi / 2))
        largest, t = max(largest, rate), t + 1
        z = z - rate**2 * decay * y - rate * adam(g)
        c = 1.0
        if t > after:
            weights += t**r * largest**2
            c = t**r * largest**2 / weights
        x = (1 - c) * x + c * z
        y = b * x + (1 - b) * z


def metaoptimize(theta, lr=1e-3, eta=1e-3, gamma=0.9999, weight_decay=0.0, b=0.99, c=0.9):
    alpha, h, mean, adam, rate = lr, torch.zeros_like(theta), 0.0, Adam(theta), 0.0
    while True:
        _, g = yield theta, rate
        rate, signal = alpha, float(h @ g)
        u = adam(g)
        root = (adam.v / (1 - adam.beta2**adam.t)).sqrt() + 1e-8
        theta = theta - alpha * (u + weight_decay * theta)
        h = gamma * (1 - alpha * weight_decay) * h + alpha * g / root
        mean = b * mean + (1 - b) * signal
        towards = c * mean + (1 - c) * signal
        alpha = alpha * math.exp(eta * ((towards > 0) - (towards < 0)))


def salsa_rates(theta, loss_at, p_value, lr=1.0, decay=0.0, c=0.05, n=256, keep=8, least=1000, every=100):
    """The rates of the search alone, with gradient descent's steps: ``p_value(x, y)`` is that of a falling line."""
    alpha, losses, searching, t = lr, [], True, 0

    def at(x, step):
        return loss_at(x, step) + decay / 2 * float(x @ x)

    while True:
        step, g = yield theta, alpha
        t, g = t + 1, g + decay * theta
        if searching:
            losses.append(at(theta, step))
            eta = 2 * alpha
            for _ in range(2):
                if at(theta - eta * g, step) <= losses[-1] - c * eta * float(g @ g):
                    break
                eta /= 2
            alpha = (1 - n**-0.5) * alpha + n**-0.5 * eta
            kept = losses[len(losses) - len(losses) // keep :]
            if t % every == 0 and len(kept) > least:
                searching = p_value(range(len(kept)), kept) < 0.05
        theta = theta - alpha * g
