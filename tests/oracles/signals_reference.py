"""The signals of one run and the spike guard, in plain Python floats, written from the definitions."""

import math
from dataclasses import dataclass, field


def average(old: float | None, new: float, share: float) -> float:
    return new if old is None else old + share * (new - old)


@dataclass
class ReferenceSignals:
    """Observes one step at a time; None is an average that has not begun."""

    first: float | None = None
    fast: float | None = None
    slow: float | None = None
    loss_spread: float = 0.0
    losses: int = 0
    aligned: float = 0.0
    aligned_slow: float = 0.0
    gradient: float | None = None
    gradient_slow: float | None = None
    gradient_spread: float = 0.0
    gradients: int = 0
    peak: float = 0.0
    update: float | None = None
    drop: float | None = None
    probing: bool = False
    cooldown: int = 0
    skipped: bool = False
    backoff: bool = False
    skips: int = 0
    history: list[bool] = field(default_factory=list)

    def observe(self, loss: float | None, dot: float, grad_sq: float, update_sq: float, param_sq: float) -> None:
        broken = (loss is not None and not math.isfinite(loss)) or not math.isfinite(grad_sq)
        known = loss is not None and math.isfinite(loss)
        if known and self.first is None and loss != 0:
            self.first = loss
        known = known and self.first is not None
        r = 0.0
        if known:
            r = loss / self.first if self.first > 0 else 2 + loss / abs(self.first)
            r = min(max(r, -100.0), 100.0)
        g = math.sqrt(grad_sq) if math.isfinite(grad_sq) else 0.0
        has_gradient = g > 0
        high = known and self.losses >= 10 and r > max(2 * self.slow + 8 * self.loss_spread, 0.5)
        if has_gradient and self.gradients >= 10:
            high = high or g > max(4 * self.gradient_slow + 8 * self.gradient_spread, self.peak)
        self.skipped = broken or (high and self.cooldown == 0)
        self.backoff = (broken or high) and self.cooldown == 0
        self.cooldown = 10 if self.skipped else max(self.cooldown - 1, 0)
        self.skips += self.skipped
        if self.skipped:
            known = has_gradient = False

        u = math.sqrt(update_sq)
        probed = self.probing
        moved = u > 0 and param_sq > 0
        self.probing = moved and self.update is None
        if has_gradient and u > 0:
            cosine = min(max(dot / g / u, -1.0), 1.0)
            self.aligned += 0.2 * (cosine - self.aligned)
            self.aligned_slow += 0.03 * (cosine - self.aligned_slow)
            if known and r * self.first != 0:
                share = g * u / abs(r * self.first)
                self.drop = average(None if probed or self.unmoved else self.drop, share, 0.1)
        if known:
            self.losses += 1
            self.fast, self.slow = average(self.fast, r, 0.1), average(self.slow, r, 0.02)
            self.loss_spread += 0.02 * (abs(r - self.slow) - self.loss_spread)
        if has_gradient:
            self.gradients += 1
            self.gradient = average(self.gradient, g, 0.1)
            self.gradient_slow = average(self.gradient_slow, g, 0.02)
            self.gradient_spread += 0.02 * (abs(g - self.gradient_slow) - self.gradient_spread)
            self.peak = max(self.peak, g)
        if moved:
            self.update = average(None if probed else self.update, u / math.sqrt(param_sq), 0.1)

    @property
    def unmoved(self) -> bool:
        return self.update is None

    def features(self, m: float, step: int, total: float, horizon: bool, loss_known: bool) -> dict[str, float]:
        done = min(step / total, 1.0)
        found = {
            "progress": 2 * done - 1,
            "remaining": math.log(max(1 - done, 1e-3)) / 3,
            "length": math.log10(total / 1000),
            "loss": 0.0,
            "loss_trend": 0.0,
            "drop": 0.0,
            "alignment": 4 * self.aligned,
            "alignment_slow": 6 * self.aligned_slow,
            "gradient_trend": 0.0 if self.gradient is None else math.log(self.gradient / self.gradient_slow),
            "update": 0.0 if self.update is None or self.probing else (math.log(self.update) + 6) / 4,
            "multiplier": m / 5,
            "horizon_known": float(horizon),
            "loss_known": float(loss_known and self.losses > 0),
        }
        if self.losses:
            fast, slow = max(self.fast, 1e-4), max(self.slow, 1e-4)
            found["loss"], found["loss_trend"] = math.log(fast) / 3, 3 * math.log(fast / slow)
            if self.drop is not None and not self.probing:
                found["drop"] = (math.log(self.drop) + 3) / 3
        masked = (() if horizon else ("progress", "remaining", "length")) + (
            () if found["loss_known"] else ("loss", "loss_trend", "drop")
        )
        return {name: 0.0 if name in masked else min(max(value, -3.0), 3.0) for name, value in found.items()}
