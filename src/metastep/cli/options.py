"""The options that several commands share, and how commands begin and end."""

from __future__ import annotations

import datetime
import inspect
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from metastep.lab.bench.torchrun import is_rank_zero, restarted, under_torchrun

if TYPE_CHECKING:
    from metastep.lab.bench.config import RunConfig

TaskName = Annotated[
    str | None, typer.Argument(help="A task, such as digits/mlp; see `metastep list`.", metavar="TASK")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A model of your own instead of TASK: module:function, where function returns a torch.nn.Module.",
        metavar="MODULE:FUNCTION",
    ),
]
Lr = Annotated[float | None, typer.Option(help="Base rate; schedules that scale themselves do not read it.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: a new one under runs/.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with what lies in this folder, bit for bit.")]
DataFolder = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Folder of the data; default: METASTEP_DATA, ./data, ../shared/data. With --model also module:function.",
    ),
]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, mps.")]
Workers = Annotated[int, typer.Option(help="Processes; each takes a run at a time.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


#: Further settings of a run, given as ``--set NAME=VALUE``: type, and what it is.
SETTINGS: dict[str, tuple[type, str]] = {
    "warmup": (int, "steps of linear warm-up"),
    "train_size": (int, "train on so many examples only"),
    "inner_valid": (int, "examples held out to learn schedules from"),
    "outer_valid": (int, "examples held out for curves and choices"),
    "noise": (str, "label noise of the training split: uniform or flip"),
    "noise_rate": (float, "share of wrong labels, in [0, 1]"),
    "threads": (int, "CPU threads of a run"),
    "log_every": (int, "steps between entries of the training curve"),
    "eval_every": (int, "steps between evaluations on held-out data"),
    "checkpoint_every": (int, "steps between checkpoints; about half a minute otherwise"),
    "clip_norm": (float, "bound on the norm of the gradient"),
    "steps": (int, "optimizer steps of a run"),
    "epochs": (float, "passes over the training data, instead of steps"),
    "batch_size": (int, "examples a step, of all processes together"),
    "optimizer": (str, "base optimizer"),
    "momentum": (float, "momentum of the optimizer"),
    "weight_decay": (float, "weight decay of the optimizer"),
}
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A further setting of a run, such as threads=1, as often as needed; `metastep list settings` names them.",
    ),
]


def settings(given: Iterable[str] | None) -> dict[str, Any]:
    """Return what ``--set`` says, by the names that ``bench.protocols`` knows.

    Raises:
        ValueError: for an unknown name, a value of another type, or label noise of which only one part is given.
    """
    from metastep.lab.bench.names import unknown_name

    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ValueError(f"set must be NAME=VALUE, got {text!r}; write --set threads=1.")
        if name not in SETTINGS:
            raise unknown_name("set", name, SETTINGS)
        kind = SETTINGS[name][0]
        try:
            found["warmup_steps" if name == "warmup" else name] = kind(value.strip())
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}[kind]
            raise ValueError(f"{name} must be {wanted}, got {value.strip()!r}.") from None
    if ("noise" in found) is not ("noise_rate" in found):
        raise ValueError(
            f"noise and noise_rate must be given together, got {found.get('noise')} and {found.get('noise_rate')}."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What can be said of a run, whichever command makes it; None leaves it to the task."""

    steps: Annotated[int | None, typer.Option(help="Optimizer steps of a run; default: the task's.")] = None
    epochs: Annotated[float | None, typer.Option(help="Passes over the training data, instead of --steps.")] = None
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step, of all processes together; default: the task's.")
    ] = None
    optimizer: Annotated[str | None, typer.Option(help="Base optimizer; default: the task's.")] = None
    momentum: Annotated[float | None, typer.Option(help="Momentum of the optimizer.")] = None
    data_dir: DataFolder = None
    device: Device = "cpu"
    set: Settings = None

    def given(self) -> dict[str, Any]:
        """What was said, by the names that ``bench.protocols`` knows.

        Raises:
            ValueError: for a wrong ``--set``.
        """
        options = {name: value for name, value in asdict(self).items() if value is not None and name != "set"}
        return {**settings(self.set), **options}


def takes(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of dataclasses as options of its own; it gets them as arguments of these names."""

    def adopt(command: Callable[..., None]) -> Callable[..., None]:
        shared = {name: _options_of(group) for name, group in groups.items()}
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name not in groups]
        every = [*own, *(option for options in shared.values() for option in options)]
        every = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in every]

        def with_options(**given: Any) -> None:
            made = {
                name: group(**{option.name: given.pop(option.name) for option in shared[name]})
                for name, group in groups.items()
            }
            command(**given, **made)

        with_options.__doc__ = command.__doc__
        with_options.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return with_options

    return adopt


def _options_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        parameter.replace(annotation=hints[name]) for name, parameter in inspect.signature(group).parameters.items()
    ]


takes_run_options = takes(run=RunOptions)


def typed(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of the options that were typed, as they are typed."""
    flags = {parameter.name: parameter.opts[0].lstrip("-") for parameter in context.command.params}
    return [flags[name] for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]


class Stopped(Exception):
    """Ended before its end, by a signal; the text says how to go on."""

    def __init__(self, resume: str, code: int) -> None:
        super().__init__(f"stopped; resume with: {resume}")
        self.code = code


def resume_command(command: str, folder: Path, configs: Iterable[RunConfig] = ()) -> str:
    """What to type to go on with runs of these configurations."""
    from metastep.lab.tasks.own_model import code_of

    flag, code = "" if command == "meta-train" else "--model ", ""
    for config in configs:
        if code_of(config.task, config.data_dir):
            code = f" {flag}{shlex.quote(config.task)} --data {shlex.quote(str(config.data_dir))}"
    return f"metastep {command} --resume {shlex.quote(str(folder))}{code}"


def refuse_unnamed_code(resume: str, configs: Iterable[RunConfig], *named: str | None, ended: bool = False) -> None:
    """Import no code that only a file names: the folder may be someone else's.

    Args:
        resume: what to type to go on, with the code.
        configs: of the runs.
        named: what was named on the command line.
        ended: whether nothing is left to run.

    Raises:
        ValueError: if other code, or none, was named.
    """
    from metastep.lab.tasks.own_model import code_of

    configs = list(configs)
    wanted = {name for config in configs for name in code_of(config.task, config.data_dir)}
    if not ended and wanted - set(named):
        raise ValueError(
            f"the folder names code, {' and '.join(sorted(wanted))}; it is run only if you name it, too, as a folder "
            f"may be someone else's. Type: {resume}"
        )
    known = {name for config in configs if wanted for name in (config.task, config.data_dir)}
    if other := {name for name in named if name is not None} - known:
        raise ValueError(
            f"resume must be given without {', '.join(sorted(other))}; the folder holds its own task and data."
        )


@contextmanager
def says_how_to_resume(resume: str, folder: Path) -> Iterator[None]:
    """Within, an error of reading or writing ends with the command that resumes, if there is something to resume."""
    from metastep.lab.runtime.folder import FolderGone, FolderInUse

    try:
        yield
    except (FolderInUse, FolderGone, ConnectionError, ChildProcessError):  # which say what to do
        raise
    except OSError as error:
        saved = (*folder.rglob("checkpoint*.pt"), *folder.glob("records.jsonl"))
        if not any(path.stat().st_size for path in saved):
            raise OSError(f"{error}; nothing was saved yet, begin again once the cause is gone") from error
        raise OSError(f"{error}; the last good checkpoint is kept, resume with: {resume}") from error


def refuse_beside_resume(context: typer.Context, *allowed: str) -> None:
    """A resumed run has its settings already.

    Raises:
        ValueError: if options other than the allowed ones were typed.
    """
    given = typed(context, (name for name in context.params if name not in ("resume", "json", *allowed)))
    if given:
        raise ValueError(
            f"resume must be given without {', '.join(given)}; what is resumed keeps the settings in its folder."
        )


def require_task(task: str | None, model: str | None = None) -> str:
    """The name of the task: one of the package, or a model of the user's own.

    Raises:
        ValueError: if there is none, or it is unknown: the name of an experiment, or of nothing, with the nearest.
    """
    from metastep.lab.bench.experiments import EXPERIMENTS
    from metastep.lab.bench.names import unknown_name
    from metastep.lab.tasks import task_names
    from metastep.lab.tasks.own_model import is_code

    if model is not None:
        if task is not None:
            raise ValueError(f"TASK must not be given with --model, got {task}; the model is the task.")
        if not is_code(model):
            raise ValueError(
                f"model must be module:function, got {model!r}; write --model net:make for the function make in net.py."
            )
        return model
    if task is None:
        raise ValueError("TASK must be given (or --model MODULE:FUNCTION, or --resume FOLDER); see `metastep list`.")
    if task in EXPERIMENTS:
        raise ValueError(f"TASK must be a task, got the experiment {task}; type: metastep experiment {task}")
    if task not in task_names() and not is_code(task):
        raise unknown_name("TASK", task, [*task_names(), *EXPERIMENTS])
    return task


def new_folder(out: Path | None, what: str) -> Path:
    """The folder for new results: the one asked for, or one under runs/ that says what and when.

    A process that torchrun started goes on in the folder if another has begun there, or an attempt before this one.

    Raises:
        ValueError: if it holds results.
    """
    if under_torchrun():
        if out is None:
            raise ValueError("out must be given under torchrun; every process, and every restart, looks there.")
        if restarted() or not is_rank_zero():
            return out
    if out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{what.replace('/', '-').replace(':', '-')}"
        taken = sum(1 for _ in Path("runs").glob(f"{name}*"))
        return Path("runs") / (f"{name}-{taken + 1}" if taken else name)
    kinds = {
        "run.json": "a run",
        "compare.json": "a comparison",
        "tasks.json": "a run of tasks",
        "experiment.json": "a comparison or an experiment",
        "evolution.json": "a training of an older version",
        "population.json": "a training of an older version",
    }
    for file, kind in kinds.items():
        if (out / file).exists():
            raise ValueError(f"out must be a new folder, {out} holds {kind}; resume it with --resume {out}.")
    return out


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(value, allow_nan=False))
