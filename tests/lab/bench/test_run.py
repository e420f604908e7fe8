"""A run in this process: to its end, stopped, continued, diverged, damaged."""

import errno
import os
from pathlib import Path

import pytest
import torch
from tests.lab.bench.running import differences, learning_config, outcome, run_config

from metastep.lab.bench.run import Progress, Run
from metastep.lab.records import read_record, read_records, write_records
from metastep.lab.runtime.folder import CheckpointError, Folder, FolderInUse
from metastep.lab.tasks.task import Task
from metastep.schedules import MLRSNet, Phased, load_schedule, save_schedule

CONFIGS = {
    "closed form": run_config(),
    "adam": run_config(optimizer="adam", optimizer_options={}, lr=1e-3, warmup_steps=5, clip_norm=0.5),
    "learning": learning_config(),
}


class StopAfter:
    """Says stop when it was asked often enough: about once a step."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def execute(config, folder, **options):
    return Run(config, folder, tensorboard=False, **options).execute()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of each configuration when nothing happens to it."""
    torch.set_num_threads(1)
    outcomes = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp("undisturbed")
        execute(config, folder)
        outcomes[name] = outcome(folder)
    return outcomes


@pytest.mark.parametrize("name", CONFIGS)
def test_the_record_of_a_run_is_one_that_reports_read(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    record = execute(config, tmp_path / "run")
    write_records([record], tmp_path / "records.jsonl")
    ((place, read),) = read_records(tmp_path / "records.jsonl")
    assert place == "records.jsonl:1"
    assert read == record == read_record(tmp_path / "run" / "record.json")
    assert record.status == "finished"
    assert record.train["step"] == list(range(4, 41, 4))
    assert record.valid["step"] == [10, 20, 30, 40]
    assert 0 <= record.final["accuracy"] <= 1
    assert record.settings["splits"]["test"] == 397
    assert record.learned is (name == "learning")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stops", [(1,), (6, 1, 9), (20, 5), (40,)], ids=str)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(name, stops, undisturbed, tmp_path) -> None:
    config = CONFIGS[name]
    for times in stops:
        assert execute(config, tmp_path, should_stop=StopAfter(times)).status == "stopped"
        assert not (tmp_path / "record.json").exists()
        torch.manual_seed(99)  # whatever happened in between
    execute(config, tmp_path)
    assert differences(outcome(tmp_path), undisturbed[name]) == []


def test_a_stop_comes_after_the_current_step_and_keeps_it(tmp_path: Path) -> None:
    run = Run(run_config(), tmp_path, should_stop=lambda: run.trainer.steps >= 6, tensorboard=False)
    assert run.execute().status == run.status == "stopped"
    again = Run(run_config(), tmp_path, should_stop=lambda: True, tensorboard=False)
    again.execute()
    assert again.trainer.steps == 6


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_a_damaged_checkpoint_costs_an_interval_and_is_told(damage, undisturbed, tmp_path) -> None:
    config = CONFIGS["learning"]
    run = Run(config, tmp_path, should_stop=lambda: run.trainer.steps >= 17, tensorboard=False)
    run.execute()
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    {
        "truncated": lambda: path.write_bytes(data[: len(data) // 3]),
        "flipped": lambda: path.write_bytes(data),
        "emptied": lambda: path.write_bytes(b""),
        "removed": path.unlink,
    }[damage]()
    notes: list[str] = []
    starts: list[int] = []
    run = Run(config, tmp_path, on_note=notes.append, on_progress=lambda p: starts.append(p.step), tensorboard=False)
    run.execute()
    (note,) = notes
    assert note.startswith("checkpoint.pt ")
    assert note.endswith("went back to checkpoint.previous.pt.")
    assert starts[0] == 16  # the next entry after 14, the checkpoint before
    assert differences(outcome(tmp_path), undisturbed["learning"]) == []


def test_two_damaged_checkpoints_are_an_error_and_are_left_alone(tmp_path: Path) -> None:
    run = Run(run_config(), tmp_path, should_stop=lambda: run.trainer.steps >= 17, tensorboard=False)
    run.execute()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"no readable checkpoint.*checkpoint.pt is trunc.*previous.pt is trunc"):
        execute(run_config(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_last_good_checkpoint(undisturbed, tmp_path, monkeypatch) -> None:
    config = CONFIGS["learning"]
    run = Run(config, tmp_path, tensorboard=False)
    sync, syncs = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal syncs
        syncs += run.trainer.steps >= 14
        if syncs > 1:  # the log is synced; the checkpoint is not
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.execute()
    monkeypatch.undo()
    notes: list[str] = []
    run = Run(config, tmp_path, on_note=notes.append, should_stop=lambda: True, tensorboard=False)
    run.execute()
    assert (run.trainer.steps, notes) == (7, [])
    execute(config, tmp_path)
    assert differences(outcome(tmp_path), undisturbed["learning"]) == []


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    config = run_config(schedule="constant", lr=1e6, optimizer_options={})
    record = execute(config, tmp_path / "run")
    assert record.status == "diverged"
    assert record.train["loss"][-1] is None
    assert record.final == {"loss": None, "accuracy": None}
    write_records([record], tmp_path / "records.jsonl")
    assert next(read_records(tmp_path / "records.jsonl"))[1].status == "diverged"
    assert execute(config, tmp_path / "run") == record


def test_a_finished_run_is_not_run_again_and_reads_the_test_split_once(tmp_path: Path, monkeypatch) -> None:
    looks: list[str] = []
    evaluate = Task.evaluate

    def counted(self, model, split, **options):
        looks.append(split)
        return evaluate(self, model, split, **options)

    monkeypatch.setattr(Task, "evaluate", counted)
    run = Run(run_config(), tmp_path, should_stop=lambda: run.trainer.steps >= 25, tensorboard=False)
    run.execute()
    assert "test" not in looks
    record = execute(run_config(), tmp_path)
    assert looks == ["outer_valid"] * 4 + ["test"]
    assert execute(run_config(), tmp_path) == record
    assert looks == ["outer_valid"] * 4 + ["test"]


def test_a_run_without_test_never_reads_it(tmp_path: Path, monkeypatch) -> None:
    looks: list[str] = []
    evaluate = Task.evaluate
    monkeypatch.setattr(
        Task, "evaluate", lambda self, model, split, **o: looks.append(split) or evaluate(self, model, split, **o)
    )
    assert execute(run_config(test=False), tmp_path).final == {"loss": None, "accuracy": None}
    assert set(looks) == {"outer_valid"}


def test_a_second_run_in_a_live_folder_is_refused(tmp_path: Path) -> None:
    run = Run(run_config(), tmp_path, tensorboard=False)
    with Folder(tmp_path), pytest.raises(FolderInUse, match=rf"is in use by process {os.getpid()}; wait for it"):
        run.execute()
    assert not (tmp_path / "run.json").exists()
    assert run.execute().status == "finished"


def test_a_folder_keeps_its_configuration(tmp_path: Path) -> None:
    execute(run_config(), tmp_path)
    with pytest.raises(ValueError, match="config must be that of the run in"):
        Run(run_config(seed=1), tmp_path)


def test_a_schedule_from_a_file_is_kept_for_the_resume(tmp_path: Path) -> None:
    file = tmp_path / "learned.safetensors"
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), file)
    config = run_config(schedule=str(file))
    whole = execute(config, tmp_path / "whole")
    run = Run(config, tmp_path / "run", should_stop=lambda: run.trainer.steps >= 9, tensorboard=False)
    run.execute()
    file.unlink()
    execute(config, tmp_path / "run")
    assert differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []
    assert whole.learned


def test_a_schedule_kept_without_its_run_is_not_taken_for_another(tmp_path: Path) -> None:
    """A kill between the two files of a beginning run, and then another schedule in the same folder."""
    save_schedule(MLRSNet(hidden_size=4), tmp_path / "schedule-used.safetensors")
    assert execute(run_config(schedule="cosine"), tmp_path).learned is False


def test_a_learning_run_leaves_its_snapshots_as_one_schedule_of_phases(tmp_path: Path) -> None:
    execute(CONFIGS["learning"], tmp_path)
    learned = load_schedule(tmp_path / "schedule.safetensors")
    assert isinstance(learned, Phased)
    names = ["step-0000003", "step-0000020", "step-0000040"]
    assert [path.stem for path in sorted((tmp_path / "snapshots").iterdir())] == names
    for member, name in zip(learned.schedules, names, strict=True):
        alone = load_schedule(tmp_path / "snapshots" / f"{name}.safetensors")
        assert differences(dict(member.state_dict()), dict(alone.state_dict())) == []
    weights = [next(member.parameters()) for member in learned.schedules]
    assert not torch.equal(weights[0], weights[2])


def test_a_schedule_cannot_be_learned_without_validation_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inner_valid must be > 0 to run .* on digits/convnet, got 0"):
        Run(learning_config(inner_valid=0), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_label_noise_reaches_the_training_split_alone(tmp_path: Path) -> None:
    clean = Run(run_config(), tmp_path / "clean").task
    noisy = Run(run_config(noise="flip", noise_rate=1.0), tmp_path / "noisy").task
    for split, flipped in (("train", True), ("inner_valid", False), ("outer_valid", False), ("test", False)):
        options = {"batch_size": 50, "seed": 3, "augment": False}
        labels = [next(task.batches(split, **options)).targets for task in (clean, noisy)]
        assert torch.equal((labels[0] + flipped) % 10, labels[1]), split


def test_progress_tells_loss_rate_and_accuracy(tmp_path: Path) -> None:
    seen: list[Progress] = []
    record = execute(learning_config(), tmp_path, on_progress=seen.append)
    assert [p.step for p in seen] == sorted({*range(4, 41, 4), *range(10, 41, 10), *range(7, 41, 7), 3, 20})
    last = seen[-1]
    assert (last.step, last.total_steps) == (40, 40)
    assert (last.loss, last.lr) == (record.train["loss"][-1], record.train["lr"][-1])
    assert last.valid["accuracy"] == record.valid["accuracy"][-1]
    assert last.meta_loss == record.meta["loss"][-1]


def test_event_files_hold_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(learning_config(), tmp_path, should_stop=lambda: run.trainer.steps >= 22)
    run.execute()
    record = Run(learning_config(), tmp_path).execute()
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag, curve, column in (
        ("train/loss", "train", "loss"),
        ("train/lr", "train", "lr"),
        ("valid/accuracy", "valid", "accuracy"),
        ("meta/loss", "meta", "loss"),
    ):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == getattr(record, curve)["step"], tag
        assert [scalar.value for scalar in scalars] == pytest.approx(getattr(record, curve)[column], rel=1e-6), tag
