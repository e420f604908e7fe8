"""What the numbers allow one to say, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.lab.report.summary import Spread, SummaryRow


def verdict(rows: Sequence[SummaryRow]) -> list[str]:
    """Say which label has the lowest test loss, and whether that stands out of the noise between seeds.

    Two labels are told apart only where the ranges of their seeds, lowest to highest, do not overlap. Only
    labels of which no run diverged can win; the others are named.

    Args:
        rows: as `summarize` returns them.

    Returns:
        One to four sentences.
    """
    ranked = [(row, row.test_loss) for row in rows if not row.diverged and row.test_loss]
    sentences = []
    if not ranked:
        sentences.append("No schedule finished every run with a finite test loss, so none is named best.")
    elif len(ranked) == 1:
        row, loss = ranked[0]
        alone = "is the only schedule" if len(rows) == 1 else "is the only schedule of which every run finished"
        sentences.append(f"{row.label} {alone}: test loss {describe(loss)}.")
    else:
        sentences += _compare(ranked)
    best = ranked[0][0] if ranked else None
    for position, (row, loss) in enumerate(ranked, start=1):
        if row.learned and row is not best:
            sentences.append(f"The learned schedule {row.label} is number {position} of {len(rows)}: {describe(loss)}.")
    broken = [f"{row.diverged} of {row.seeds} runs of {row.label}" for row in rows if row.diverged]
    if broken:
        sentences.append(f"Diverged: {_join(broken)}.")
    return sentences


def _compare(ranked: Sequence[tuple[SummaryRow, Spread]]) -> list[str]:
    (best, loss), *others = ranked
    lead = f"{best.label} has the lowest mean test loss, {describe(loss)}"
    if any(spread.n == 1 for _, spread in ranked):
        next_row, next_loss = others[0]
        return [
            f"{lead}; next is {next_row.label} with {describe(next_loss)}.",
            "With a single seed nothing tells a difference from noise: run more before believing the order.",
        ]
    near = [row for row, spread in others if loss.overlaps(spread)]
    if near:
        verb = "lies" if len(near) == 1 else "lie"
        sentences = [f"{lead}, but {_join([row.label for row in near])} {verb} within the noise between seeds."]
        paired = _paired(best, near[0])
        return [*sentences, paired] if paired else sentences
    next_row, next_loss = others[0]
    return [f"{lead}, and no other range overlaps with it; next is {next_row.label} with {describe(next_loss)}."]


def _paired(best: SummaryRow, other: SummaryRow) -> str | None:
    shared = best.test_losses.keys() & other.test_losses.keys()
    if not shared:
        return None
    lower = sum(best.test_losses[seed] < other.test_losses[seed] for seed in shared)
    return f"Seed by seed, {best.label} was below {other.label} in {lower} of {len(shared)}."


def describe(spread: Spread) -> str:
    """Write a spread as ``0.123 ± 0.004 (3 seeds)``."""
    if spread.n == 1:
        return f"{short(spread.mean)} (1 seed)"
    return f"{short(spread.mean)} ± {short(spread.half_range, 2)} ({spread.n} seeds)"


def short(value: float, digits: int = 4) -> str:
    """Write a number with so many significant digits, without a needless exponent."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.0f}" if "e" in text else text


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
