"""Methods that metastep is compared with, each from its paper's equations or a maintained package.

A baseline is one file and one line in :data:`BASELINES`. From that line follow the import from
``metastep.lab.baselines``, its name on the command line and in the benchmark, its row in the table of methods, and the
contract tests. A row in ``bench/table`` says what else than its rate is tuned.
"""

from dataclasses import dataclass
from importlib import import_module

from torch.optim import Optimizer


@dataclass(frozen=True)
class Baseline:
    """Where a baseline is found; nothing is imported before it is asked for.

    Args:
        place: file and class, below this package.
        package: that must be installed for it; None: none besides torch.
    """

    place: str
    package: str | None = None

    @property
    def module(self) -> str:
        """The module that holds the class."""
        return f"{__name__}.{self.place.rpartition('.')[0]}"

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return self.place.rpartition(".")[2]

    def load(self) -> type[Optimizer]:
        """Import the class."""
        loaded: type[Optimizer] = getattr(import_module(self.module), self.class_name)
        return loaded


#: Every baseline by the name that a run gives to its optimizer.
BASELINES: dict[str, Baseline] = {
    "l4": Baseline("l4.L4"),
    "sps": Baseline("sps.SPS"),
    "dfw": Baseline("dfw.DFW"),
    "armijo": Baseline("armijo.Armijo"),
    "sasa": Baseline("sasa.SASA"),
    "salsa": Baseline("salsa.SALSA"),
    "metaoptimize": Baseline("metaoptimize.MetaOptimize"),
    "mechanic": Baseline("mechanic.Mechanic"),
    "gen": Baseline("gen.GeN"),
    "schedule-free-plus": Baseline("schedule_free_plus.ScheduleFreePlus"),
    "forward-mode": Baseline("forward_mode.ForwardMode"),
    "l2l": Baseline("learned.L2L"),
    "rnnprop": Baseline("learned.RNNProp"),
    "muon": Baseline("muon.MuonAdamW"),
    "schedule-free-sgd": Baseline("packages.schedule_free.ScheduleFreeSGD", "schedulefree"),
    "schedule-free-adamw": Baseline("packages.schedule_free.ScheduleFreeAdamW", "schedulefree"),
    "schedule-free-radam": Baseline("packages.schedule_free.ScheduleFreeRAdam", "schedulefree"),
    "prodigy": Baseline("packages.prodigy.Prodigy", "prodigyopt"),
    "schedule-free-prodigy": Baseline("packages.prodigy.ScheduleFreeProdigy", "prodigyopt"),
    "d-adapt-sgd": Baseline("packages.d_adaptation.DAdaptSGD", "dadaptation"),
    "d-adapt-adamw": Baseline("packages.d_adaptation.DAdaptAdamW", "dadaptation"),
    "dog": Baseline("packages.dog.DoG", "dog"),
    "ldog": Baseline("packages.dog.LDoG", "dog"),
    "momo": Baseline("packages.momo.Momo", "momo"),
    "momo-adam": Baseline("packages.momo.MomoAdam", "momo"),
    "alig": Baseline("packages.pytorch_optimizers.AliG", "pytorch_optimizer"),
    "adabound": Baseline("packages.pytorch_optimizers.AdaBound", "pytorch_optimizer"),
    "lookahead-sgd": Baseline("packages.pytorch_optimizers.LookaheadSGD", "pytorch_optimizer"),
    "lookahead-adam": Baseline("packages.pytorch_optimizers.LookaheadAdam", "pytorch_optimizer"),
}

__all__ = ["BASELINES", "Baseline", *(baseline.class_name for baseline in BASELINES.values())]


def __getattr__(name: str) -> type[Optimizer]:
    """The class of a baseline."""
    for baseline in BASELINES.values():
        if baseline.class_name == name:
            return baseline.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
