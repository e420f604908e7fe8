"""A task of a user's own code: a model and its data, each named as ``package.module:function``."""

import hashlib
import importlib
import inspect
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from re import compile as pattern
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from metastep.lab.tasks.batches import Batch, EpochBatches
from metastep.lab.tasks.data import CLASSES_OF_STANDARDISED_TARGETS, TaskData
from metastep.lab.tasks.datasets.own import read_own_images, read_own_text
from metastep.lab.tasks.sources import MissingData, visible_files
from metastep.lab.tasks.splits import SPLIT_SEED, SPLITS, DataOptions, split_order
from metastep.lab.tasks.task import Kind, Recipe

_CODE: Final = pattern(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_TEST_SHARE: Final = 0.15  # where no test data are given
_FORMS: Final = "a DataLoader, a data set with a length, or a pair of tensors (inputs, targets)"
_GIVEN: Final = (*SPLITS, "valid")  # "valid" is a shorter name of outer_valid


class OwnCodeError(ValueError):
    """A user's own code failed, or gave something that cannot be trained."""


def is_code(name: str | None) -> bool:
    """Tell whether a name is that of code, ``package.module:function``, rather than of a task or an existing path."""
    return name is not None and _CODE.fullmatch(name) is not None and not Path(name).exists()


def code_of(task: str, data_dir: str | None) -> list[str]:
    """Give the code that a run of this task on these data imports; none for the tasks of the package."""
    return [name for name in (task, data_dir) if name is not None and is_code(name)]


def code_digests(names: Iterable[str]) -> dict[str, str]:
    """Give the file of each piece of code and the SHA-256 of its content, as "model.py sha256:..."."""
    found = {}
    for name in names:
        load_code(name)
        file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
        digest = "" if file is None else f" sha256:{hashlib.sha256(Path(file).read_bytes()).hexdigest()}"
        found[name] = f"{'built in' if file is None else Path(file).name}{digest}"
    return found


def load_code(name: str) -> Any:
    """Import what is named, looking in the current folder first.

    Args:
        name: ``package.module:function``; a class will do, too.

    Raises:
        OwnCodeError: If there is no such module or function, or the module fails.
        ImportError: If the module imports another that is not installed.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ImportError(f"{name} imports {error.name}, which is not installed.") from error
        file = f"{module_name.replace('.', '/')}.py"
        remedy = f"write {module_name.removesuffix('.py')}:{attribute}" if module_name.endswith(".py") else (
            f"there is no {file} in {here}, and no installed package of that name"
        )  # fmt: skip
        raise OwnCodeError(f"{name} must name a module that can be imported, got {module_name}; {remedy}.") from error
    except Exception as error:
        raise _failed(name, error) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
            has = f"it has {', '.join(own)}" if own else "it has no function"
            raise OwnCodeError(f"{name} must name a function of {module.__file__}, got {attribute!r}; {has}.")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise OwnCodeError(
            f"{name} must be a function or a class, got {type(found).__name__}; it is called for each run, so write "
            f"a function that makes a new one."
        )
    return found


def _failed(name: str, error: Exception) -> OwnCodeError:
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if f.filename != __file__ and not {"site-packages", "importlib"} & {*Path(f.filename).parts}
    ]
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""
    return OwnCodeError(
        f"{name} failed ({where}{type(error).__name__}: {error}); METASTEP_TRACEBACK=1 shows all of it."
    )


# ---- the data


@dataclass(frozen=True)
class _Split:
    """One split as it was given.

    Args:
        dataset: Examples by number, each an input and a target.
        rows: (examples,) int64, those of this split.
        collate: Makes a batch of a list of examples.
        workers: Processes that read examples.
    """

    dataset: Any
    rows: Tensor
    collate: Callable[[list[Any]], Any] = default_collate
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class OwnData(TaskData):
    """Four splits of examples that a user's function gave.

    Args:
        splits_by_name: The splits.
        source: What gave them, for errors.
    """

    splits_by_name: Mapping[str, _Split]
    source: str

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of every split."""
        return {name: len(split.rows) for name, split in self.splits_by_name.items()}

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "OwnBatches":
        """Give an endless stream over one split."""
        return OwnBatches(self, split, batch_size=batch_size, seed=seed, device=device, shuffle=shuffle)


class OwnBatches(EpochBatches):
    """Batches of one split, shuffled anew every epoch.

    They can be resumed bit for bit where ``dataset[i]`` is always the same, or draws from torch's generator alone and
    in this process.
    """

    def __init__(
        self, data: OwnData, split: str, *, batch_size: int, seed: int, device: torch.device, shuffle: bool
    ) -> None:
        self._split, self._source, self._device, self._seed = data.splits_by_name[split], data.source, device, seed
        self._num_classes = data.num_classes
        examples = len(self._split.rows)
        super().__init__({"split": split}, examples=examples, batch_size=batch_size, seed=seed, shuffle=shuffle)

    def _draw(self, order: Tensor, generator: torch.Generator) -> None:
        self._rows = self._split.rows[order]
        self._epoch_batches: Any = None  # what reads the rest of this epoch

    def _take(self, part: slice) -> Batch:
        dataset = self._split.dataset
        if isinstance(dataset, TensorDataset):
            given: Any = [tensor[self._rows[part]] for tensor in dataset.tensors]
        else:
            if self._epoch_batches is None:
                starts = range(part.start, self.examples, self.batch_size)
                left = [self._rows[start : start + self.batch_size].tolist() for start in starts]
                self._epoch_batches = iter(
                    DataLoader(
                        dataset,
                        batch_sampler=left,
                        collate_fn=self._split.collate,
                        num_workers=self._split.workers,
                        generator=torch.Generator().manual_seed(self._seed),  # not the run's
                    )
                )
            given = next(self._epoch_batches)
        if not (isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(x, Tensor) for x in given)):
            what = [type(x).__name__ for x in given] if isinstance(given, (tuple, list)) else type(given).__name__
            raise OwnCodeError(f"{self._source} must give batches of two tensors, inputs and targets, got {what}.")
        inputs, targets = given
        if targets.dtype == torch.int64 and targets.device.type == "cpu" and self._num_classes:  # no wait for a device
            _check_classes(self._source, targets, self._num_classes)
        return Batch(inputs.to(self._device), targets.to(self._device))


def _check_classes(source: str, targets: Tensor, outputs: int) -> None:
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
        raise OwnCodeError(
            f"targets of {source} must be from 0 to {outputs - 1}, as the network has {outputs} outputs, got "
            f"{int(targets.min())} to {int(targets.max())}."
        )


def _splits_from(source: str, given: Any) -> tuple[dict[str, _Split], int | None]:
    """Give the splits that a function returned, by name, and the batch size of a loader for training."""
    if isinstance(given, (tuple, list)) and len(given) in (2, 3) and not any(isinstance(x, Tensor) for x in given):
        given = dict(zip(("train", "test") if len(given) == 2 else ("train", "valid", "test"), given, strict=True))
    elif not isinstance(given, Mapping):
        given = {"train": given}
    if "train" not in given or (unknown := given.keys() - set(_GIVEN)):
        got = ", ".join(map(str, given))
        raise OwnCodeError(f"{source} must give the splits train and, as you like, {', '.join(_GIVEN[1:])}, got {got}.")
    del unknown
    if {"valid", "outer_valid"} <= given.keys():
        raise OwnCodeError(f"{source} must give valid or outer_valid, which are the same, got both.")
    splits = {"outer_valid" if name == "valid" else name: _split(source, name, one) for name, one in given.items()}
    return splits, getattr(given["train"], "batch_size", None)


def _split(source: str, name: str, given: Any) -> _Split:
    collate, workers = default_collate, 0
    if isinstance(given, DataLoader):
        collate, workers, given = given.collate_fn, given.num_workers, given.dataset
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(x, Tensor) for x in given):
        if len(given[0]) != len(given[1]):
            raise OwnCodeError(f"{name} of {source} must have as many targets as inputs, got {len(given[1])} for "
                               f"{len(given[0])}.")  # fmt: skip
        given = TensorDataset(*given)
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")) or isinstance(given, (Tensor, str, Mapping)):
        raise OwnCodeError(f"{name} of {source} must be {_FORMS}, got {type(given).__name__}.")
    return _Split(given, torch.arange(len(given)), collate, workers)


def _read_code(options: DataOptions, *, source: str, splits: Mapping[str, _Split], num_classes: int) -> OwnData:
    """Cut what was not given from the training split, in a random order that is always the same."""
    if options.label_noise is not None:
        raise ValueError(f"noise must not be set for {source}, got {options.label_noise.kind}; give such labels in it.")
    train, names = splits["train"], ("inner_valid", "outer_valid")
    for name in names:
        if name in splits and getattr(options, name) is not None:
            raise ValueError(f"{name} must not be set, got {getattr(options, name)}; {source} gives that split.")
    none: dict[str, Any] = {name: 0 for name in names if name in splits}
    options = replace(options, **none)
    count = len(train.rows)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    rows = split_order(order, options, test=0 if "test" in splits else round(_TEST_SHARE * count))
    cut = {name: replace(train, rows=rows[name]) for name in SPLITS}
    notes = f"{source}, {count} examples to train on" + ("" if len(splits) == len(SPLITS) else " and hold out from")
    return OwnData(
        splits_by_name={**cut, **{name: split for name, split in splits.items() if name != "train"}},
        source=source,
        num_classes=num_classes,
        notes=notes,
    )


def _read_path(options: DataOptions) -> TaskData:
    """Read a folder of images, or a text."""
    place = Path(options.data_dir or "").expanduser()
    text = place.suffix == ".txt" if place.is_file() else bool(visible_files(place, "*.txt"))
    return read_own_text(options, chunk=64, recurrent=False) if text else read_own_images(options)


# ---- the model


class _Maker:
    """Makes the network of every run."""

    def __init__(self, name: str) -> None:
        self._name, self._make = name, load_code(name)
        self._made: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __call__(self, num_classes: int | None) -> nn.Module:
        """Call the user's function; it gets ``num_classes`` if it has a parameter of that name."""
        parameter = inspect.signature(self._make).parameters.get("num_classes")
        if parameter is not None and num_classes is None and parameter.default is parameter.empty:
            raise OwnCodeError(f"{self._name} must know its num_classes by itself: the data do not say how many.")
        told = {} if parameter is None or num_classes is None else {"num_classes": num_classes}
        try:
            network = self._make(**told)
        except Exception as error:
            raise _failed(self._name, error) from error
        if not isinstance(network, nn.Module):
            raise OwnCodeError(f"{self._name} must give a torch.nn.Module, got {type(network).__name__}.")
        if network in self._made:
            raise OwnCodeError(f"{self._name} must make a new network whenever it is called, got the same one again.")
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise OwnCodeError(f"{self._name} must have parameters to train, got none that requires a gradient.")
        self._made.add(network)
        return network

    def outputs(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Run a network on a batch, in eval mode."""
        try:
            outputs = network.eval()(inputs)
        except Exception as error:
            given = f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
            raise OwnCodeError(f"the inputs are {given}: {_failed(self._name, error)}") from error
        if not isinstance(outputs, Tensor):
            raise OwnCodeError(f"the network of {self._name} must give a tensor, got {type(outputs).__name__}.")
        return outputs


def _kind(name: str, outputs: Tensor, targets: Tensor) -> tuple[Kind, int]:
    """Give the kind of task that a batch shows, and its number of classes."""
    shapes = f"outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)} of {targets.dtype}"
    if targets.dtype.is_floating_point:
        if outputs.shape != targets.shape:
            raise OwnCodeError(
                f"{name} must give outputs of the targets' shape, where these are numbers, got {shapes}."
            )
        return "regression", CLASSES_OF_STANDARDISED_TARGETS
    if targets.dtype != torch.int64 or targets.dim() not in (1, 2):
        raise OwnCodeError(
            f"targets must be int64 classes, (batch,) or (batch, time), or floating-point numbers, got {shapes}; "
            "write .long() or .float()."
        )
    if outputs.shape[:-1] != targets.shape:
        raise OwnCodeError(f"{name} must give (batch, classes), or (batch, time, classes) for text, got {shapes}.")
    return "classification" if targets.dim() == 1 else "language", outputs.shape[-1]


@lru_cache(maxsize=4)  # the code is imported, and the data read, once in a process
def own_recipe(model: str, data: str | None) -> Recipe:
    """Give the recipe of a task whose model, and as a rule data, are a user's own code.

    The model is made once and tried on two examples, which shows what kind of task it is. Torch's generator is then as
    before.

    Args:
        model: ``package.module:function``; the function returns a network, (batch, ...) -> (batch, outputs).
        data: ``package.module:function``, which returns splits, or a path as for the tasks ``own-images/...`` and
            ``own-text/...``.

    Raises:
        OwnCodeError: If the code cannot be imported, fails, or does not fit together; it says what to change.
        MissingData: If no data are named, or are not there.
    """
    if data is None:
        raise MissingData(
            f"data_dir must name the data of {model}: --data package.module:function, a folder of images or a text."
        )
    with torch.random.fork_rng(devices=[]):
        maker, batch_size = _Maker(model), None
        read: Callable[..., TaskData] = _read_path
        known: dict[str, Any] = {}
        classes: int | None = None
        if is_code(data):
            function = load_code(data)
            try:
                given = function()
            except Exception as error:
                raise _failed(data, error) from error
            splits, batch_size = _splits_from(data, given)
            classes = _classes(splits["train"].dataset)
            known, read = {"source": data, "splits": splits, "num_classes": classes or 0}, _read_code
        tried = read(DataOptions(inner_valid=None, outer_valid=None, data_dir=data), **known)
        stream = tried.stream("train", batch_size=2, seed=0, device=torch.device("cpu"), augment=False, shuffle=False)
        batch = next(stream)
        with torch.no_grad():
            outputs = maker.outputs(maker(classes if known else tried.num_classes), batch.inputs)
        kind, outputs_count = _kind(model, outputs, batch.targets)
    if kind != "regression":
        _check_classes(
            data, batch.targets if not known or classes is None else torch.tensor([classes - 1]), outputs_count
        )
    if known:
        known["num_classes"] = outputs_count
    return Recipe(
        name=model,
        kind=kind,
        summary=f"{model} on {data}",
        network=maker,
        read=lambda options: read(options, **known),
        batch_size=batch_size or 32,
        eval_batch_size=batch_size or 32,
        total_steps=1000,
        optimizer="adamw",
        optimizer_options={"weight_decay": 0.01},
        learning_rate=1e-3,
        inner_valid=None,
        outer_valid=None,
    )


def _classes(dataset: Any) -> int | None:
    """Give the number of classes that a data set says it has; None: it does not say."""
    if isinstance(dataset, TensorDataset) and (targets := dataset.tensors[1]).dtype == torch.int64:
        return int(targets.max()) + 1
    return len(dataset.classes) if hasattr(dataset, "classes") else None
