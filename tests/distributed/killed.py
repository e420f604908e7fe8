"""The command line, whose process of rank KILL_RANK is killed before step KILL_STEP of torchrun's first attempt.

It leaves the file KILL_MARK.
"""

import os
import signal
from pathlib import Path

from torch import Tensor

from metastep.cli import main
from metastep.lab.bench.training import Trainer

advance = Trainer.advance


def advance_or_die(trainer: Trainer) -> Tensor:
    """A step of the trainer, or its end."""
    doomed = os.environ.get("KILL_RANK") == os.environ["RANK"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if doomed and trainer.steps == int(os.environ["KILL_STEP"]):
        Path(os.environ["KILL_MARK"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(trainer)


if __name__ == "__main__":
    Trainer.advance = advance_or_die
    main()
