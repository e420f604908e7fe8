"""A folder for one process at a time; checkpoints that are whole and never code; logs that are checked."""

import errno
import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from metastep.lab.runtime import folder as module
from metastep.lab.runtime.folder import (
    CheckpointError,
    CheckpointFile,
    Folder,
    FolderGone,
    FolderInUse,
    JsonLog,
    LogMark,
    read_lines,
)

STATE = {"weights": torch.arange(5.0), "nested": [(1, None), {"rate": 0.5}], "name": "x"}


@pytest.fixture
def file(tmp_path: Path) -> CheckpointFile:
    """A file with two checkpoints: step 2, and step 1 before it."""
    checkpoint = CheckpointFile(tmp_path / "run" / "checkpoint.pt")
    for step in (1, 2):
        checkpoint.save({"step": step, **STATE})
    return checkpoint


def steps(file: CheckpointFile) -> tuple[int, int]:
    """The steps of both files."""
    return tuple(torch.load(path, weights_only=True)["step"] for path in (file.path, file.previous))


def test_what_was_saved_is_loaded(file: CheckpointFile) -> None:
    state, note = file.load()
    assert note is None
    assert state["step"] == 2
    assert torch.equal(state["weights"], STATE["weights"])
    assert (state["nested"], state["name"]) == (STATE["nested"], STATE["name"])
    assert steps(file) == (2, 1)
    names = ["checkpoint.previous.pt", "checkpoint.previous.pt.sha256", "checkpoint.pt", "checkpoint.pt.sha256"]
    assert sorted(path.name for path in file.path.parent.iterdir()) == names


def test_the_checksum_beside_is_that_of_sha256sum(file: CheckpointFile) -> None:
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert (file.path.parent / "checkpoint.pt.sha256").read_text() == f"{digest}  checkpoint.pt\n"


def test_every_truncation_and_every_flipped_byte_is_noticed(file: CheckpointFile) -> None:
    good = file.path.read_bytes()
    for place in [*range(0, 60), *range(60, len(good), 97), len(good) - 1]:
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]):
            file.path.write_bytes(bad)
            state, note = file.load()
            assert state["step"] == 1
            assert note is not None
            assert note.endswith("went back to checkpoint.previous.pt.")


def test_two_broken_files_are_one_line_that_names_both(file: CheckpointFile) -> None:
    file.path.write_bytes(b"")
    file.previous.write_bytes(file.previous.read_bytes()[:-3])
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt is truncated.*; checkpoint.previous.pt is truncated"
    ) as e:
        file.load()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("operation", ["fsync", "replace", "link"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_save_that_fails_leaves_a_good_checkpoint(file, monkeypatch, operation: str, number: int) -> None:
    left, original = number, getattr(os, operation)

    def failing(*args: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args)

    monkeypatch.setattr(os, operation, failing)
    try:
        file.save({"step": 3})
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    monkeypatch.undo()
    newest, before = steps(file)
    assert (newest, before) in {(2, 1), (2, 2), (3, 2)}
    assert file.load()[1] is None
    file.save({"step": 4})
    assert file.load()[0]["step"] == 4


@pytest.mark.parametrize("saves", [1, 2])
@pytest.mark.parametrize("number", [4, 5, 6])
def test_the_one_before_is_checked_wherever_a_save_was_killed(tmp_path: Path, monkeypatch, saves, number: int) -> None:
    """The changes of names after the first three: from there on there is one before, with its checksum or not yet."""
    file, left, original = CheckpointFile(tmp_path / "checkpoint.pt"), number, os.replace
    for step in range(saves):
        file.save({"step": step})

    def killed(*args: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        file.save({"step": saves})
    monkeypatch.undo()
    assert file.load() == ({"step": saves - 1}, None)
    file.path.unlink()
    file.path.write_bytes(b"damaged")
    state, note = file.load()
    assert state["step"] == saves - 1
    assert note is not None
    assert note.endswith("; went back to checkpoint.previous.pt.")


def test_a_full_disk_touches_neither_file(file: CheckpointFile, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in file.path.parent.iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.save({"step": 3})
    assert {path.name: path.read_bytes() for path in file.path.parent.iterdir()} == before


def test_without_hard_links_the_one_before_is_copied(file: CheckpointFile, monkeypatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file.save({"step": 3})
    assert steps(file) == (3, 2)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("sealed", [False, True])
def test_code_in_a_checkpoint_is_not_run(file: CheckpointFile, tmp_path: Path, how: str, sealed: bool) -> None:
    """Not even if its author computed the right checksum."""
    buffer = io.BytesIO()
    bad = {"step": 9, "evil": Malicious(tmp_path / "owned")}
    torch.save(bad, buffer) if how == "torch" else pickle.dump(bad, buffer, protocol=2)
    payload = buffer.getvalue()
    file.path.write_bytes(payload)
    if sealed:
        (file.path.parent / "checkpoint.pt.sha256").write_text(f"{hashlib.sha256(payload).hexdigest()}  checkpoint.pt")
    state, note = file.load()
    assert state["step"] == 1
    assert note is not None
    assert ("it holds more than tensors and plain values" in note) is sealed
    assert not (tmp_path / "owned").exists()


def test_there_is_nothing_before_the_first_save(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    assert not file.exists()
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is missing; checkpoint.previous.pt is missing"):
        file.load()


def test_a_checkpoint_without_its_checksum_is_read_and_that_is_said(file: CheckpointFile) -> None:
    (file.path.parent / "checkpoint.pt.sha256").unlink()
    state, note = file.load()
    assert state["step"] == 2
    assert note == "checkpoint.pt has no checksum beside it and was read unchecked."
    (file.path.parent / "checkpoint.pt.sha256").write_bytes(b"\xff\xfe")
    state, note = file.load()
    assert state["step"] == 1
    assert note is not None


def old_form(state: dict[str, object]) -> bytes:
    """A checkpoint as it was written until its checksum moved out of it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return b"metastep checkpoint 1\n" + hashlib.sha256(payload).digest() + payload


def test_a_checkpoint_of_the_old_form_is_read_and_kept_as_the_one_before(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    file.path.write_bytes(old_form({"step": 1}))
    file.previous.write_bytes(old_form({"step": 0}))
    assert file.load() == ({"step": 1}, None)
    file.save({"step": 2})
    assert file.load() == ({"step": 2}, None)
    file.path.write_bytes(b"")
    state, note = file.load()
    assert state == {"step": 1}
    assert note == (
        "checkpoint.pt is truncated or damaged (its checksum does not agree); went back to checkpoint.previous.pt."
    )
    file.previous.write_bytes(old_form({"step": 1})[:-1])
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        file.load()


def test_a_state_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is no state: it holds one list"):
        CheckpointFile(tmp_path / "checkpoint.pt").load()


# ---- the folder


def test_a_folder_has_one_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with Folder(tmp_path / "new"), pytest.raises(FolderInUse, match=f"new is in use by process {os.getpid()}"):
        Folder(tmp_path / "new").__enter__()
    with Folder(tmp_path / "new"):
        assert (tmp_path / "new" / ".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    "answer", [OSError(errno.ENOLCK, "No locks"), OSError(errno.EOPNOTSUPP, "Not supported"), NotImplementedError()]
)
def test_where_there_are_no_locks_nothing_is_locked_and_it_is_said(
    answer: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object, **named: object) -> None:
        raise answer

    monkeypatch.setattr(module.FileLock, "acquire", none)
    said = pytest.warns(UserWarning, match="has no locks, so that nothing keeps a second command out")
    with said, Folder(tmp_path), Folder(tmp_path) as folder:
        folder.write("file", "content")
    assert (tmp_path / "file").read_text() == "content"


def test_a_lock_that_cannot_be_taken_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.FileLock, "acquire", refused)
    with pytest.raises(PermissionError), Folder(tmp_path):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Folder(tmp_path):
        raise KeyError
    with Folder(tmp_path):
        pass


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    left = [
        "..checkpoint.pt.complete.abc.part", ".checkpoint.pt.complete", ".checkpoint.previous.pt.part",
        ".run.json.x1.part", "snapshots/.step-0000010.safetensors.y2.part",
    ]  # fmt: skip
    kept = ["a.part", ".hidden", "checkpoint.pt", "snapshots/step-0000010.safetensors"]
    for name in (*left, *kept):
        (tmp_path / name).write_text(name)
    with Folder(tmp_path):
        assert [name for name in left if (tmp_path / name).exists()] == []
    assert all((tmp_path / name).read_text() == name for name in kept)


@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced"])
def test_a_folder_that_is_gone_is_an_error_and_is_not_made_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run"
    with Folder(path) as folder:
        folder.save({"step": 1})
        if how == "deleted":
            shutil.rmtree(path)
        else:
            path.rename(tmp_path / "elsewhere")
        if how == "replaced":
            path.mkdir()
        for use in (folder.check, lambda: folder.save({"step": 2}), lambda: folder.write("file", "content")):
            with pytest.raises(FolderGone, match="run was deleted or renamed while work was going on in it"):
                use()
    assert not path.exists() or list(path.iterdir()) == []
    if how != "deleted":
        assert CheckpointFile(tmp_path / "elsewhere" / "checkpoint.pt").load() == ({"step": 1}, None)


# ---- the log


@pytest.fixture
def marked(tmp_path: Path) -> tuple[Path, LogMark]:
    """A log of 20 lines whose first ten are those of a checkpoint at step 10."""
    log = JsonLog(tmp_path / "log.jsonl")
    for step in range(1, 21):
        log.append({"split": "train", "step": step, "loss": step / 7, "worst": float("inf")})
        if step == 10:
            mark = log.sync()
    log.close()
    return log.path, mark


def test_a_log_goes_on_where_its_mark_is(marked: tuple[Path, LogMark]) -> None:
    path, mark = marked
    log = JsonLog(path, mark=mark, after=10)
    assert log.damage is None
    log.append({"step": 11})
    assert log.sync().lines == 11
    log.close()
    lines, unread = read_lines(path)
    assert ([line["step"] for line in lines], unread) == (list(range(1, 12)), 0)
    assert lines[0] == {"split": "train", "step": 1, "loss": 1 / 7, "worst": None}


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: b"", 0),
        (lambda data: data[: len(data) // 4], 4),
        (lambda data: data.replace(b'"step":3,', b'"step":3'), 9),
        (lambda data: data.replace(b'"step":3,', b'"step":true,'), 9),
        (lambda data: data.replace(b"\n", b"\n\xff\n", 3), 10),
        (lambda data: data.replace(b"0.14", b"0.15"), 10),
    ],
    ids=["empty", "cut", "garbled", "wrong type", "no text", "another number"],
)
def test_every_damage_of_a_log_is_said_and_what_is_left_is_kept(marked, damage, left: int) -> None:
    path, mark = marked
    path.write_bytes(damage(path.read_bytes()))
    log = JsonLog(path, mark=mark, after=10)
    assert log.damage is not None
    assert f"log.jsonl is not what was written until step 10 (missing, cut or changed): {left} of 10" in log.damage
    again = log.sync()
    log.close()
    lines, unread = read_lines(path)
    assert (len(lines), unread) == (left, 0)
    assert damage_of(path, mark=again, after=10) is None


def damage_of(path: Path, **known: object) -> str | None:
    """What a log says when it is opened."""
    with JsonLog(path, **known) as log:
        return log.damage


def test_a_missing_log_is_said(marked) -> None:
    path, mark = marked
    path.unlink()
    assert damage_of(path, mark=mark, after=10) is not None
    path.unlink()
    assert damage_of(path, after=10) is not None  # of a checkpoint that knows no mark
    path.unlink()
    assert damage_of(path) is None  # at the beginning
