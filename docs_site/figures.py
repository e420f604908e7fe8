"""Computes the figures in the documents from the records of ``results/``, and looks for them in the pages.

    python -m docs_site.figures          # `make figures`

``figures.toml`` lists the claims: a piece of a page's own text, as a template whose figures are asked of the records.
What a template may ask for are the public methods of :class:`Records`, and the filters of :data:`FILTERS`.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.hyper_sweep_plot import over_tuned_base
from benchmarks.untuned_table import Score, comparison, one_for_all
from jinja2 import Environment, StrictUndefined, TemplateError, nodes

from docs_site.stage import ROOT
from metastep.files import decode_json, read_json
from metastep.lab.report.results import Group, Results, read_results
from metastep.lab.report.verdict import short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CLAIMS = Path(__file__).with_suffix(".toml")


class Records:
    """What the records say. Every path starts in the folder of the records.

    Args:
        folder: ``results/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The paths that were asked for since this was emptied.
        self.asked: set[str] = set()

    def _at(self, path: str) -> Path:
        self.asked.add(path)
        if not (self._folder / path).exists():
            raise FileNotFoundError(f"there is no record results/{path}; restore it, or take the claim out.")
        return self._folder / path

    def json(self, path: str) -> Any:
        """Return the values of a JSON file."""
        return read_json(self._at(path), Any)

    def lines(self, path: str) -> list[Any]:
        """Return the values of a file that holds a JSON object a line."""
        return [decode_json(line, Any, path) for line in self._at(path).read_text("utf-8").splitlines()]

    def found(self, path: str, pattern: str) -> list[Any]:
        """Return the numbers that a pattern finds in a text: one a match, or a tuple where it has several groups."""
        matches = re.findall(pattern, self._at(path).read_text("utf-8"))
        return [tuple(map(float, one)) if isinstance(one, tuple) else float(one) for one in matches]

    def results(self, folder: str) -> Results:
        """Return the runs of an experiment, as its report reads them."""
        return _results(self._at(folder))

    def runs(self, folder: str, method: str, task: str | None = None, budget: int | None = None) -> Group:
        """Return the seeds of a method, on the only task and with the largest budget unless said."""
        results = self.results(folder)
        key = (task or results.tasks[0], method, budget or results.budgets[-1])
        if key not in results.groups:
            raise LookupError(f"results/{folder} has no run of {method} on {key[0]} with a budget of {key[2]}.")
        return results.groups[key]

    def over_cosine(self, base: str, *folders: str) -> dict[str, Score]:
        """Return how methods compare with the tuned cosine over a base, by name (``benchmarks/untuned_table.py``)."""
        return _over_cosine(base, *map(self._at, folders))

    def one_rate(self, folder: str) -> list[float]:
        """Return the rate of the one configuration for all tasks, chosen for each task by the others."""
        return [choice.runs[0].record.lr for choice in one_for_all([self._at(folder)])]

    def sweep(self, *paths: str) -> dict[tuple[str, str], dict[tuple[float, float | None], float]]:
        """Return losses over the tuned base's by task and base, then by start and hyper-rate (None: the base)."""
        return over_tuned_base([self._at(path) for path in paths])


@cache
def _results(folder: Path) -> Results:
    return read_results(folder)


@cache
def _over_cosine(base: str, *folders: Path) -> dict[str, Score]:
    return comparison(base, list(folders))


def _where(rows: Iterable[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row
    raise LookupError(f"the record has no row with {wanted}.")


FILTERS: dict[str, Any] = {
    "fixed": lambda value, digits=2: f"{value:,.{digits}f}",  # digits behind the point
    "percent": lambda value, digits=0: f"{100 * value:.{digits}f}",
    "short": short,  # significant digits
    "mean": statistics.fmean,
    "median": statistics.median,
    "geometric_mean": statistics.geometric_mean,
    "log": math.log,
    "slope": lambda points: statistics.linear_regression(*zip(*points, strict=True)).slope,  # of a line through them
    "where": _where,  # the first of the rows that has these values
}


@dataclass(frozen=True)
class Outcome:
    """What came of one claim on one page; ``wrong`` is empty where its text stands there."""

    page: str
    said: str
    wrong: str


class Checker:
    """Renders claims from records and looks for them in pages.

    Args:
        root: the repository: pages are relative to it, records in its ``results/``.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._records = Records(root / "results")
        self._templates = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self._templates.filters.update(FILTERS)
        self._templates.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
        for name in dir(Records):
            if not name.startswith("_"):
                self._templates.globals[name] = getattr(self._records, name)

    def text(self, template: str, given: str = "") -> str:
        """Return what a claim says according to the records, in one line.

        Raises:
            ValueError: if nothing in it comes from a record.
            LookupError, OSError, TemplateError: if a record lacks what it asks for.
        """
        outputs = self._templates.parse(template).find_all(nodes.Output)
        self._records.asked.clear()
        said = in_one_line(self._templates.from_string(given + template).render())
        if not self._records.asked or not any(output.find(nodes.Name) for output in outputs):
            raise ValueError("no figure in it comes from a record; compute it with {{ ... }}, or take the claim out.")
        if not said:
            raise ValueError("the records leave nothing of it; look what it selects of them, or take the claim out.")
        return said

    def check(self, claims: dict[str, Any]) -> Iterator[Outcome]:
        """Check every claim on every page that makes it."""
        for claim in claims["claim"]:
            given = (claims["shared"][claim["uses"]] if "uses" in claim else "") + claim.get("given", "")
            for template in [claim["says"]] if isinstance(claim["says"], str) else claim["says"]:
                try:
                    said, wrong = self.text(template, given), ""
                except (ValueError, LookupError, OSError, TemplateError, TypeError) as error:
                    said, wrong = in_one_line(template), f"{type(error).__name__}: {error}"
                for page in claim["pages"]:
                    yield Outcome(page, said, wrong or self._missing(said, page))

    def _missing(self, said: str, page: str) -> str:
        text = _page(self._root / page)
        if stands_in(said, text):
            return ""
        rows = re.findall(r"\|.*?\|(?= \||$)", said) if said.startswith("|") else []
        return "\n".join(
            f"should say: {part}\nsays:       {nearest(part, text)}"
            for part in [row for row in rows if row not in text] or [said]
        )


@lru_cache
def _page(path: Path) -> str:
    return in_one_line(path.read_text("utf-8"))


def in_one_line(text: str) -> str:
    """Collapse white space, and with it the breaks of lines, which say nothing."""
    return " ".join(text.split())


def stands_in(said: str, text: str) -> bool:
    """Say whether a piece is in a text, and not as a part of longer numbers: 17 is not in 117, nor 0.2 in 0.25."""
    return re.search(rf"(?<![\w.,]){re.escape(said)}(?![\w]|[.,]\d)", text) is not None


def nearest(said: str, text: str) -> str:
    """Return the piece of a text that is most like what should be there."""
    wanted, words = said.split(), text.split()
    known = Counter(wanted)
    pieces = [words[start : start + len(wanted)] for start in range(max(1, len(words) - len(wanted) + 1))]
    likely = nlargest(20, pieces, key=lambda piece: (Counter(piece) & known).total())
    return " ".join(max(likely, key=lambda piece: SequenceMatcher(None, wanted, piece, autojunk=False).ratio()))


def report(outcomes: Iterable[Outcome]) -> tuple[str, bool]:
    """Return what to print, page by page, and whether every claim came out."""
    pages: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        pages.setdefault(outcome.page, []).append(outcome)
    lines = []
    for page, those in pages.items():
        wrong = [outcome for outcome in those if outcome.wrong]
        lines.append(f"{page}: {len(those) - len(wrong)} of {len(those)} claims come out of the records")
        lines += [f"  {line}" for outcome in wrong for line in (*outcome.wrong.splitlines(), "")]
    return "\n".join(lines), not any(outcome.wrong for those in pages.values() for outcome in those)


def main() -> int:
    """Check the claims of ``figures.toml``."""
    said, right = report(Checker().check(tomllib.loads(CLAIMS.read_text("utf-8"))))
    sys.stdout.write(f"{said}\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
