"""A user's own model and data, named as module:function."""

import itertools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metastep.lab.tasks import MissingData, load_task
from metastep.lab.tasks.own_model import OwnCodeError, code_digests, is_code
from metastep.lab.tasks.table import recipe_of

_NUMBER = itertools.count()
MODEL = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

torch.manual_seed(0)
X, Y = torch.randn(200, 4), torch.arange(200) % 3

class Net(nn.Linear):
    def __init__(self, num_classes=3):
        super().__init__(4, num_classes)

class Numbers(Dataset):
    def __len__(self):
        return 200
    def __getitem__(self, i):
        return X[i], Y[i]

class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], Y[0]

def pair():
    return X, Y
def data_set():
    return Numbers()
def loaders():
    return DataLoader(Numbers(), batch_size=50, shuffle=True), DataLoader(Numbers(), batch_size=7)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the current folder; give its name, which no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(further: str = "") -> str:
        name = f"own_code_{next(_NUMBER)}"
        Path(f"{name}.py").write_text(MODEL + textwrap.dedent(further))
        return name

    return write


def test_what_is_code_is_told_from_tasks_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_code("net:make")
    assert is_code("package.net:Class.make")
    assert not any(map(is_code, (None, "digits/mlp", "photos", "C:\\photos", "a/b:c", ":f", "f:")))
    (tmp_path / "net:make").mkdir()
    assert not is_code("net:make")


@pytest.mark.parametrize(("data", "batch_size", "test"), [("pair", 32, 30), ("data_set", 32, 30), ("loaders", 50, 200)])
def test_every_form_of_data_gives_four_splits(code, data: str, batch_size: int, test: int) -> None:
    module = code()
    task = load_task(f"{module}:Net", data_dir=f"{module}:{data}")
    assert (task.kind, task.num_classes, task.batch_size) == ("classification", 3, batch_size)
    left = 200 - (0 if data == "loaders" else test)
    tenth = left // 10
    assert task.splits == {"train": left - 2 * tenth, "inner_valid": tenth, "outer_valid": tenth, "test": test}
    seen = {}
    for name in ("train", "inner_valid", "outer_valid"):
        stream = task.batches(name, batch_size=8)
        rows = torch.cat([next(stream).inputs for _ in range(task.data.steps_per_epoch(name, 8))])
        seen[name] = {tuple(row) for row in rows.tolist()}
        assert len(seen[name]) == task.splits[name]
    assert not seen["train"] & (seen["inner_valid"] | seen["outer_valid"])


def test_a_loader_gives_the_batches_of_its_data_set_as_tensors_do(code) -> None:
    module = code()
    first, second = (load_task(f"{module}:Net", data_dir=f"{module}:{form}") for form in ("pair", "data_set"))
    ours, theirs = first.batches("train", seed=3), second.batches("train", seed=3)
    for _ in range(7):  # more than an epoch
        one, other = next(ours), next(theirs)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


def test_a_stream_over_a_data_set_is_resumed_in_mid_epoch(code) -> None:
    module = code()
    task = load_task(f"{module}:Net", data_dir=f"{module}:data_set")
    stream = task.batches("train", seed=1)
    for _ in range(3):
        next(stream)
    saved = stream.state_dict()
    expected = [next(stream).inputs for _ in range(5)]
    other = task.batches("train", seed=1)
    other.load_state_dict(saved)
    assert all(torch.equal(next(other).inputs, one) for one in expected)


def test_reading_leaves_torchs_generator_as_it_was(code) -> None:
    module = code()
    before = torch.random.get_rng_state()
    task = load_task(f"{module}:Net", data_dir=f"{module}:data_set")
    next(task.batches("train"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_named_splits_are_taken_as_they_are(code) -> None:
    module = code("def splits(): return {'train': (X, Y), 'valid': (X[:20], Y[:20]), 'test': (X[:30], Y[:30])}")
    task = load_task(f"{module}:Net", data_dir=f"{module}:splits", inner_valid=0)
    assert task.splits == {"train": 200, "inner_valid": 0, "outer_valid": 20, "test": 30}
    with pytest.raises(ValueError, match="outer_valid must not be set, got 5"):
        load_task(f"{module}:Net", data_dir=f"{module}:splits", outer_valid=5)


def test_numbers_make_a_regression_and_tokens_a_language_model(code) -> None:
    module = code("""
        def numbers(): return X, X @ torch.ones(4, 2)
        def two(): return nn.Linear(4, 2)
        def tokens(): return (torch.arange(800) % 5).view(100, 8), (torch.arange(1, 801) % 5).view(100, 8)
        def words(): return nn.Embedding(5, 5)
        """)
    task = load_task(f"{module}:two", data_dir=f"{module}:numbers")
    assert task.kind == "regression"
    assert set(task.evaluate(task.make_model(), "test")) == {"loss", "r2"}
    task = load_task(f"{module}:words", data_dir=f"{module}:tokens")
    assert (task.kind, task.num_classes) == ("language", 5)
    assert task.loss(task.make_model(), next(task.batches("train"))).isfinite()


def test_a_model_that_asks_for_the_number_of_classes_is_told(code) -> None:
    module = code("def five(): return X, torch.arange(200) % 5")
    assert load_task(f"{module}:Net", data_dir=f"{module}:five").make_model().out_features == 5


def test_an_own_model_reads_a_text(code, tmp_path: Path) -> None:
    module = code("def characters(num_classes): return nn.Embedding(num_classes, num_classes)")
    (tmp_path / "notes.txt").write_text("to be or not to be " * 300)
    task = load_task(f"{module}:characters", data_dir="notes.txt")
    assert task.kind == "language"
    assert task.make_model().num_embeddings == task.num_classes


@pytest.mark.parametrize(
    ("model", "data", "further", "message"),
    [
        ("nothing", "pair", "", r"must name a function of .*, got 'nothing'; it has Net, "),
        ("made", "pair", "made = Net()", "must be a function or a class, got Net; it is called for each run"),
        ("f", "pair", "def f(): return 5", "must give a torch.nn.Module, got int"),
        ("f", "pair", "n = Net()\ndef f(): return n", None),
        ("f", "pair", "def f(): return nn.Linear('a')", r"f failed \(own_code_\d+.py, line 29: TypeError"),
        ("f", "pair", "def f(): return nn.Linear(5, 3)", r"inputs are \(2, 4\) float32.*RuntimeError"),
        ("f", "pair", "def f(): return nn.LSTM(4, 3)", "must give a tensor, got tuple"),
        ("f", "pair", "def f(): return nn.Flatten()", "must have parameters to train"),
        ("f", "pair", "def f(): return nn.Linear(4, 2)", "must be from 0 to 1, as the network has 2 outputs, got 2"),
        ("f", "data_set", "def f(num_classes): return Net()", "must know its num_classes by itself"),
        ("Net", "f", "def f(): return None", "train of .* must be a DataLoader, .* got NoneType"),
        ("Net", "f", "def f(): return X, Y.int()", "targets must be int64 classes.*int32; write .long"),
        ("Net", "f", "def f(): return X, X[:, 0]", r"outputs of the targets' shape.*\(2, 3\) for targets \(2,\)"),
        ("Net", "f", "def f(): return X, Y[:9]", "as many targets as inputs, got 9 for 200"),
        ("Net", "f", "def f(): return {'training': pair()}", "must give the splits train .*, got training"),
        ("Net", "f", "def f(): return {k: pair() for k in ('train', 'valid', 'outer_valid')}", "which are the same"),
        ("Net", "f", "def f(): return DataLoader(Endless())", "a data set with a length"),
        ("Net", "f", "def f(): return [{'x': x} for x in X]", "batches of two tensors, inputs and targets, got dict"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(code, model: str, data: str, further: str, message: str | None) -> None:
    module = code(further)
    with pytest.raises(OwnCodeError, match=message or "must make a new network whenever it is called"):
        load_task(f"{module}:{model}", data_dir=f"{module}:{data}").make_model()


def test_a_class_that_comes_late_is_said(code) -> None:
    module = code("def late(): return [(X[i], torch.tensor(9 if i == 150 else 1)) for i in range(200)]")
    stream = load_task(f"{module}:Net", data_dir=f"{module}:late", inner_valid=0, outer_valid=0).batches("test")
    train = load_task(f"{module}:Net", data_dir=f"{module}:late").batches("train")
    with pytest.raises(OwnCodeError, match="must be from 0 to 2, as the network has 3 outputs, got 1 to 9"):
        [next(one) for one in (stream, train) for _ in range(6)]


def test_modules_that_are_not_there_or_do_not_import_are_said(code) -> None:
    module = code("import nosuchmodule_of_anyone")
    with pytest.raises(ImportError, match="imports nosuchmodule_of_anyone, which is not installed"):
        recipe_of(f"{module}:Net", f"{module}:pair")
    with pytest.raises(OwnCodeError, match=r"there is no nowhere_to_find\.py in .*, and no installed package"):
        recipe_of("nowhere_to_find:f", "x:y")
    with pytest.raises(OwnCodeError, match=r"write net_of_mine:make\."):
        recipe_of("net_of_mine.py:make", "x:y")
    broken = code("def (")
    with pytest.raises(OwnCodeError, match="SyntaxError"):
        recipe_of(f"{broken}:Net", "x:y")


def test_data_must_be_named_and_code_is_for_own_models(code) -> None:
    module = code()
    with pytest.raises(MissingData, match=r"--data package\.module:function"):
        recipe_of(f"{module}:Net")
    with pytest.raises(ValueError, match="data_dir must be a folder or a file for digits/mlp, got the code"):
        load_task("digits/mlp", data_dir=f"{module}:pair")


def test_a_digest_is_that_of_the_file(code) -> None:
    module = code()
    (before,) = code_digests([f"{module}:Net"]).values()
    assert before.startswith(f"{module}.py sha256:")
    Path(f"{module}.py").write_text("other = 1")
    (after,) = code_digests([f"{module}:Net"]).values()
    assert after != before
