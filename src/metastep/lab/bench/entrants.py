"""What is compared: the schedules, the seeds, the rates to choose from."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from metastep.lab.bench.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A schedule in a comparison: what to call it, and what it is (see ``make_schedule``)."""

    label: str
    schedule: str

    def __post_init__(self) -> None:
        if not (isinstance(self.label, str) and isinstance(self.schedule, str)):
            raise ValueError(f"label and schedule must be strings, got {self.label!r} and {self.schedule!r}.")
        if self.label in ("", ".", "..") or set(self.label) & set('/\\:\0"<>|?*'):
            raise ValueError(f"label must be fit for the name of a folder, got {self.label!r}; write label=file.")

    @classmethod
    def parse(cls, text: str) -> "Entrant":
        """From ``name``, ``file`` or ``label=file``."""
        label, found, schedule = text.partition("=")
        if found:
            return cls(label=label.strip(), schedule=schedule.strip())
        files, _, control = text.partition("@")
        stem = "+".join(Path(part).stem for part in files.split("+"))
        return cls(label=f"{stem}@{control}" if control else stem, schedule=text)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared.

    Args:
        base: the settings that all runs share; its schedule, seed and lr are replaced, and only runs that learn their
            schedule keep its meta.
        entrants: the schedules.
        seeds: number of seeds, >= 1; seeds are 0, 1, ...
        lrs: base rates for the schedules that read one; of several each such schedule gets the one with the lowest
            outer_valid loss at the end of a run on a seed of its own. Schedules that scale themselves are not tuned.
    """

    base: RunConfig
    entrants: tuple[Entrant, ...]
    seeds: int
    lrs: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be >= 1, got {self.seeds}.")
        if not self.entrants:
            raise ValueError("schedules must name at least one schedule, got none.")
        labels = [entrant.label for entrant in self.entrants]
        if len(set(labels)) != len(labels):
            raise ValueError(f"schedules must have different labels, got {', '.join(labels)}; write label=file.")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs) or len(set(self.lrs)) != len(self.lrs):
            raise ValueError(f"lrs must be different rates > 0, got {list(self.lrs)}.")
        if len(self.lrs) > 1 and (self.base.outer_valid == 0 or self.base.eval_every is None):
            raise ValueError(f"lrs must be one rate without an outer_valid split to choose by, got {list(self.lrs)}.")

    def to_json(self) -> str:
        """The configuration as JSON text."""
        entrants = [asdict(entrant) for entrant in self.entrants]
        base = json.loads(self.base.to_json())
        return json.dumps({"base": base, "entrants": entrants, "seeds": self.seeds, "lrs": self.lrs}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "CompareConfig":
        """The configuration of :meth:`to_json`.

        Raises:
            ValueError: if it is none.
        """
        try:
            values = json.loads(text)
            return cls(
                base=RunConfig.from_json(json.dumps(values["base"])),
                entrants=tuple(Entrant(**entrant) for entrant in values["entrants"]),
                seeds=values["seeds"],
                lrs=tuple(values["lrs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no configuration of a comparison: {error}") from error
