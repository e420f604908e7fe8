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
