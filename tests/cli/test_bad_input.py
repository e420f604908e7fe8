"""Whatever is wrong: one clear line on standard error, exit code 2, nothing lost and nothing begun."""

import pickle
from pathlib import Path

import pytest
import torch

from metastep.cli import main
from metastep.lab.runtime.folder import CheckpointFile
from metastep.schedules import MLRSNet, save_schedule

DIGITS = ("train", "digits/mlp", "--steps", "5")


def refused(result, *words: str) -> None:
    """The line, and that it is one."""
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "cifar10/resnet10"), ("cifar10/resnet10", "cifar10/resnet18")),
        (("meta-train", "digit/mlp"), ("digit/mlp", "digits/mlp")),
        ((*DIGITS, "--threads", "2"), ("--threads", "Write --set threads=VALUE")),
        ((*DIGITS, "--set", "threads"), ("set must be NAME=VALUE, got 'threads'",)),
        ((*DIGITS, "--set", "thread=1"), ("set must be a known name, got 'thread'", "did you mean threads")),
        ((*DIGITS, "--set", "threads=many"), ("threads must be a whole number, got 'many'",)),
        ((*DIGITS, "--set", "noise_rate=much"), ("noise_rate must be a number, got 'much'",)),
        (("compare", "field/small"), ("field/small", "type: metastep experiment field/small")),
        (("train",), ("TASK must be given",)),
        ((*DIGITS, "--schedule", "cosin"), ("schedule must be", "'cosin'", "did you mean cosine")),
        (("compare", "digits/mlp", "--schedules", "cosine,constnt"), ("'constnt'", "constant")),
        (("compare", "digits/mlp", "--schedules", ","), ("schedules must name at least one",)),
        (("compare", "digits/mlp", "--lrs", "0.1,fast"), ("lrs must be numbers", "'0.1,fast'")),
        (("compare", "digits/mlp", "--seeds", "0"), ("seeds must be >= 1, got 0",)),
        (("compare", "digits/mlp", "--workers", "0", "--out", "w"), ("workers must be >= 1, got 0",)),
        ((*DIGITS, "--optimizer", "sdg"), ("'sdg'", "did you mean sgd")),
        ((*DIGITS, "--optimizer", "adam", "--momentum", "0.9"), ("adam has no momentum; it has betas, eps",)),
        ((*DIGITS, "--optimizer", "adam", "--set", "nesterov=1"), ("'nesterov'; known: warmup, train_size",)),
        ((*DIGITS, "--optimizer", "kfac"), ("got 'kfac'; `metastep list optimizers` names all",)),
        ((*DIGITS, "--batch-size", "-3"), ("error: --batch-size must be >= 1, got -3",)),
        ((*DIGITS, "--momentum", "2"), ("error: --momentum must be in [0, 1), got 2.0",)),
        (("train", "digits/mlp", "--steps", "-3"), ("--steps must be >= 1, got -3",)),
        (("train", "digits/mlp", "--steps", "many"), ("--steps must be a whole number, got 'many'.",)),
        (("train", "digits/mlp", "--lr=fast"), ("--lr must be a number, got 'fast'.",)),
        (("report", "x", "--format", "pdf"), ("--format must be one of html, md, csv, png, svg, got 'pdf'.",)),
        ((*DIGITS, "--set", "warmup=5"), ("--set warmup must be less than the run's 5 steps, got 5",)),
        ((*DIGITS, "--set", "train_size=-1"), ("train_size must be >= 1, got -1",)),
        ((*DIGITS, "--set", "train_size=99999"), ("train_size must be in 1..1000, got 99999",)),
        ((*DIGITS, "--set", "inner_valid=-1"), ("inner_valid must be >= 0, got -1",)),
        ((*DIGITS, "--set", "inner_valid=9999"), ("--set inner_valid + --set outer_valid must be",)),
        (("meta-train", "digits/mlp", "--hidden-size", "-1"), ("--hidden-size must be >= 1, got -1",)),
        (("meta-train", "digits/mlp", "--set", "inner_valid=0"), ("inner_valid must be > 0 to run",)),
        ((*DIGITS, "--set", "noise=uniform", "--set", "noise_rate=1.2"), ("noise_rate must be in [0, 1], got 1.2",)),
        ((*DIGITS, "--set", "noise=flip"), ("--set noise and --set noise_rate must be given",)),
        ((*DIGITS, "--set", "noise_rate=0.3"), ("--set noise and --set noise_rate must be given",)),
        ((*DIGITS, "--set", "noise=salt", "--set", "noise_rate=0.3"), ("noise must be uniform or flip, got 'salt'",)),
        ((*DIGITS, "--epochs", "2"), ("--steps and --epochs must not both be given",)),
        ((*DIGITS, "--device", "cuda:99"), ("--device must be one that torch finds here (cpu", "), got 'cuda:99'.")),
        ((*DIGITS, "--device", "toaster"), ("--device must be one that torch finds here (cpu", "), got 'toaster'.")),
        ((*DIGITS, "--colour", "red"), ("--colour",)),
        (("trian",), ("'trian'",)),
        (("train", "--resume", "nowhere"), ("no run in nowhere", "--resume needs a folder of a run")),
        (("compare", "--resume", "nowhere"), ("no comparison or experiment in nowhere",)),
        (("train", "--resume", "nowhere", "--steps", "5"), ("resume must be given without steps",)),
        (("report", "nowhere"), ("there is no nowhere; give the folder",)),
        (("inspect", "nowhere.pth"), ("no schedule file 'nowhere.pth'",)),
        (("train", "mnist/mlp", "--data", "nowhere"), ("MNIST must be in", "ubyte and 3 more", "METASTEP_DATA")),
        (("meta-train", "cifar10/resnet18", "--data", "nowhere"), ("CIFAR-10", "METASTEP_DATA")),
        (("compare", "ptb/lstm2", "--data", "nowhere"), ("METASTEP_DATA",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_it_is_refused_before_anything_is_written(metastep, tmp_path: Path, arguments, words) -> None:
    refused(metastep(*arguments), *words)
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("runs", "w")] == []


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


@pytest.mark.parametrize("command", ["train", "compare", "inspect"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_schedule_is_refused(metastep, schedule: Path, command: str, damage: str) -> None:
    data = bytearray(schedule.read_bytes())
    data[-5] ^= 1
    bad = {"truncated": data[: len(data) // 2], "flipped": data, "empty": b"", "text": b"not a schedule"}[damage]
    Path("bad.safetensors").write_bytes(bad)
    if command == "inspect":
        result = metastep("inspect", "bad.safetensors")
    else:
        flag = {"train": "--schedule", "compare": "--schedules"}[command]
        result = metastep(command, "digits/mlp", "--steps", "5", flag, "bad.safetensors", "--out", "o")
    refused(result, "bad.safetensors")
    assert not Path("o").exists()


class Code:
    def __reduce__(self):
        return (open, ("owned", "w"))


@pytest.mark.parametrize("command", [("inspect",), (*DIGITS, "--schedule")], ids=["inspect", "train"])
def test_a_pth_that_would_run_code_is_refused(metastep, command: tuple[str, ...]) -> None:
    torch.save({"layer1": Code()}, "evil.pth")
    refused(metastep(*command, "evil.pth"), "evil.pth", "would run code")
    Path("evil2.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    refused(metastep(*command, "evil2.pth"), "evil2.pth")
    assert not Path("owned").exists()


def test_a_pth_with_other_tensors_is_refused(metastep) -> None:
    torch.save({"weight": torch.zeros(3, 3)}, "other.pth")
    refused(metastep("inspect", "other.pth"), "other.pth", "weight")


def test_a_folder_with_results_is_not_written_over(metastep, tmp_path: Path) -> None:
    assert metastep(*DIGITS, "--out", "run").code == 0
    assert metastep("compare", *DIGITS[1:], "--schedules", "cosine", "--seeds", "1", "--out", "cmp").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for command in ("train", "meta-train", "compare"):
        refused(
            metastep(command, *DIGITS[1:], "--out", "run"), "out must be a new folder", "resume it with --resume run"
        )
        refused(metastep(command, *DIGITS[1:], "--out", "cmp"), "out must be a new folder, cmp holds a comparison")
    refused(metastep("train", "--resume", "cmp"), "it holds a comparison or an experiment: metastep compare")
    refused(metastep("compare", "--resume", "run"), "it holds a run: metastep train --resume run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_broken_checkpoints_are_one_line_and_stay(metastep, tmp_path: Path) -> None:
    assert metastep(*DIGITS, "--set", "checkpoint_every=2", "--out", "run").code == 0
    run = tmp_path / "run"
    (run / "record.json").unlink()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run / name).write_bytes((run / name).read_bytes()[:100])
    refused(
        metastep("train", "--resume", "run"), "no readable checkpoint in run", "checkpoint.previous.pt is truncated"
    )
    assert (run / "checkpoint.pt").stat().st_size == 100


def test_one_broken_checkpoint_is_a_note(metastep, tmp_path: Path) -> None:
    assert metastep(*DIGITS, "--set", "checkpoint_every=2", "--out", "run").code == 0
    (tmp_path / "run" / "record.json").unlink()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"")
    result = metastep("train", "--resume", "run", "--json")
    assert result.code == 0
    assert result.err.startswith("note: checkpoint.pt is truncated or damaged")
    assert "went back to checkpoint.previous.pt" in result.err


@pytest.mark.parametrize("text", ["", "{", '{"schema": 99}', '{"schema": 1}'])
@pytest.mark.parametrize(("command", "file"), [("train", "run.json"), ("compare", "experiment.json")])
def test_a_damaged_configuration_is_refused(metastep, tmp_path: Path, command: str, file: str, text: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / file).write_text(text)
    refused(metastep(command, "--resume", "x"), file)


def test_damaged_records_are_refused(metastep, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"schema": 1}\n')
    refused(metastep("report", "records.jsonl"), "records.jsonl:1")


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize(
    ("schema", "words"), [(0, "schema must be at least 1, got 0"), (2, "schema must be at most 1, got 2; use a newer")]
)
def test_a_record_of_another_schema_is_refused_in_words(metastep, schema: int, words: str, end: str) -> None:
    Path("records.jsonl").write_text(f'{{"schema": {schema}}}\n{{"schema": {schema}}}{end}')
    result = metastep("report", "records.jsonl")
    refused(result, "records.jsonl:1", words)
    assert ("remove or repeat that run" in result.err) == (schema == 0)


def test_where_pages_cannot_be_drawn_the_records_are_kept(metastep, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object, **options: object) -> None:
        raise ImportError("altair must be installed.")

    monkeypatch.setattr("metastep.cli.compare.show_report", absent)
    result = metastep("compare", *DIGITS[1:], "--schedules", "cosine", "--seeds", "1", "--out", "cmp", "--json")
    refused(result, "altair must be installed. The records are kept; then type: metastep report cmp")
    assert Path("cmp", "records.jsonl").stat().st_size > 0


def test_the_report_of_an_unfinished_comparison_says_how_to_go_on(metastep, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "experiment.json").write_text('{"candidates": [1]}')
    refused(metastep("report", "x"), "is not finished; resume it with: metastep compare --resume x")


def test_a_full_disk_is_one_line_that_says_how_to_go_on(metastep, tmp_path: Path, monkeypatch) -> None:
    save = CheckpointFile.save

    def full(self, state) -> None:
        if self.exists():
            raise OSError(28, "No space left on device")
        save(self, state)

    monkeypatch.setattr(CheckpointFile, "save", full)
    result = metastep(*DIGITS, "--set", "checkpoint_every=2", "--out", "run", "--json")
    refused(result, "No space left", "the last good checkpoint is kept, resume with: metastep train --resume run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert metastep("train", "--resume", "run").code == 0


@pytest.mark.parametrize("error", [TypeError("a\nb"), KeyError("steps"), RuntimeError("no kernel"), MemoryError()])
def test_what_nobody_foresaw_is_one_line_and_a_traceback_only_where_it_is_asked_for(
    metastep, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("metastep.lab.tasks.table.recipe_of", fails)
    refused(metastep(*DIGITS), type(error).__name__, "METASTEP_TRACEBACK=1 shows where")
    monkeypatch.setenv("METASTEP_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["metastep", *DIGITS])
    with pytest.raises(type(error)):
        main()


@pytest.mark.parametrize("content", ["5", "{}", "null", "[]", "{", '{"schema": 1}', '{"schema": 99}', "[" * 100_000])
def test_a_damaged_record_is_refused_by_name(metastep, tmp_path: Path, content: str) -> None:
    assert metastep(*DIGITS, "--out", "run").code == 0
    (tmp_path / "run" / "record.json").write_text(content)
    refused(metastep("train", "--resume", "run"), "run/record.json")
    assert (tmp_path / "run" / "record.json").read_text() == content


def test_where_nothing_was_saved_no_checkpoint_is_promised(metastep, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: CheckpointFile, state: dict[str, object]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointFile, "save", full)
    result = metastep(*DIGITS, "--out", "run", "--json")
    refused(result, "No space left", "nothing was saved yet, begin again once the cause is gone")
    assert "checkpoint is kept" not in result.err
