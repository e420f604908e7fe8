"""What the numbers allow one to say, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.lab.report.results import Group, Results
    from metastep.lab.report.scores import Interval


def verdict(results: Results) -> list[str]:
    """Say which method is best, and whether that stands out of the noise.

    On one task two methods are told apart only where the ranges of their seeds, lowest to highest, do not overlap;
    only methods of which no run was lost can win, and the others are named. Over several tasks it is the area under
    the performance profile that counts, with tests of the ranks.

    Returns:
        At least one sentence.
    """
    budget = results.budgets[-1]
    if results.one_task:
        return _on_one_task(results.ordered(budget))
    return [_best_area(results, budget), *(text for of in results.budgets for text in _significance(results, of))]


def trials(budget: int) -> str:
    """Name a budget."""
    return "defaults, no tuning" if budget == 1 else f"best of {budget} trials"


def short(value: float, digits: int = 4) -> str:
    """Write a number with so many significant digits, without a needless exponent."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.0f}" if "e" in text else text


def counted(count: int, word: str) -> str:
    """Write a number with its noun."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _on_one_task(groups: Sequence[Group]) -> list[str]:
    ranked = [(group, group.test_loss) for group in groups if not group.lost and group.test_loss]
    sentences = []
    if not ranked:
        sentences.append("No schedule finished every run with a finite test loss, so none is named best.")
    elif len(ranked) == 1:
        group, loss = ranked[0]
        alone = "is the only schedule" if len(groups) == 1 else "is the only schedule of which every run finished"
        sentences.append(f"{group.method} {alone}: test loss {_described(loss)}.")
    else:
        sentences += _comparison(ranked)
    best = ranked[0][0] if ranked else None
    for position, (group, loss) in enumerate(ranked, start=1):
        if group.learned and group is not best:
            sentences.append(
                f"The learned schedule {group.method} is number {position} of {len(groups)}: {_described(loss)}."
            )
    for status in ("diverged", "failed"):
        counts = [(sum(run.record.status == status for run in group.runs), group) for group in groups]
        lost = [f"{count} of {len(group.runs)} runs of {group.method}" for count, group in counts if count]
        if lost:
            sentences.append(f"{status.capitalize()}: {_join(lost)}.")
    return sentences


def _comparison(ranked: Sequence[tuple[Group, Interval]]) -> list[str]:
    (best, loss), *others = ranked
    lead = f"{best.method} has the lowest mean test loss, {_described(loss)}"
    second, second_loss = others[0]
    if any(interval.n == 1 for _, interval in ranked):
        return [
            f"{lead}; next is {second.method} with {_described(second_loss)}.",
            "With a single seed nothing tells a difference from noise: run more before believing the order.",
        ]
    near = [group for group, interval in others if loss.overlaps(interval)]
    if not near:
        return [f"{lead}, and no other range overlaps with it; next is {second.method} with {_described(second_loss)}."]
    verb = "lies" if len(near) == 1 else "lie"
    sentences = [f"{lead}, but {_join([group.method for group in near])} {verb} within the noise between seeds."]
    shared = best.test_losses.keys() & near[0].test_losses.keys()
    lower = sum(best.test_losses[seed] < near[0].test_losses[seed] for seed in shared)
    if shared:
        sentences.append(f"Seed by seed, {best.method} was below {near[0].method} in {lower} of {len(shared)}.")
    return sentences


def _best_area(results: Results, budget: int) -> str:
    areas = list(results.standings[budget].areas.items())
    if not areas:
        return "No method was run on every task, so none is named best."
    (best, area), *others = areas
    rest = f"; next is {others[0][0]} with {others[0][1]:.3f}" if others else ""
    return f"{best} has the largest area under the performance profile, {area:.3f} ({trials(budget)}){rest}."


def _significance(results: Results, budget: int) -> list[str]:
    standing, when = results.standings[budget], "At defaults" if budget == 1 else f"With {budget} trials"
    sentences = []
    if ranking := standing.ranking:
        told = sum(p < 0.05 for p in ranking.pairwise_p.values())
        alike = "is rejected" if ranking.friedman_p < 0.05 else "is not rejected"
        sentences.append(
            f"{when}, the hypothesis that all methods perform equally {alike} (Friedman, p = {ranking.friedman_p:.2g});"
            f" {told} of {len(ranking.pairwise_p)} pairs of methods differ (Wilcoxon, 5 % after Holm)."
        )
    if standing.left_out:
        named = ", ".join(standing.left_out)
        sentences.append(
            f"{when}, these methods have no area and no rank, as they were not run on every task: {named}."
        )
    return sentences


def _described(interval: Interval) -> str:
    """Write an interval as ``0.123 ± 0.004 (3 seeds)``."""
    if interval.n == 1:
        return f"{short(interval.mean)} (1 seed)"
    return f"{short(interval.mean)} ± {short(interval.half_range, 2)} ({interval.n} seeds)"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
