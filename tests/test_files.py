"""Whatever goes wrong while a file is written, the old one is still whole."""

import errno
import os
import stat
from pathlib import Path

import pytest

from metastep.files import decode_json, read_json, sync_folder, write_atomically

OLD = b"the last good checkpoint"


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "run.bin").write_bytes(OLD)
    return tmp_path / "run.bin"


def test_the_new_content_replaces_the_old_and_leaves_nothing_beside(file: Path) -> None:
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(file.parent.iterdir()) == [file]


def test_text_is_utf8_and_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "page.html", "größer ✓")
    assert (tmp_path / "a" / "b" / "page.html").read_bytes().decode() == "größer ✓"


class FullDisk:
    """A file that takes a few bytes and then no more."""

    def __init__(self, file) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        self.file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("moment", ["create", "write", "fsync", "chmod", "replace"])
def test_a_full_disk_at_any_moment_leaves_the_old_file_and_no_other(
    moment: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moment == "create":
        monkeypatch.setattr("tempfile.mkstemp", no_space)
    elif moment == "write":
        fdopen = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda *a: FullDisk(fdopen(*a)))
    else:
        monkeypatch.setattr(os, moment, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"a new checkpoint")
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


def test_an_interrupt_while_writing_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


def test_content_is_on_the_disk_before_the_name_changes_and_the_name_after(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def noted_replace(*names: object) -> None:
        events.append("name")
        replace(*names)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(file, b"new")
    assert events == ["content", "name", "folder"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_file_has_the_users_usual_permissions(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x", b"")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path: Path) -> None:
    sync_folder(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"[" * 100_000, "object"),
        (b'{"steps": ' + b"[" * 100_000, "int"),
        (b'{"other": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"steps": ' + b"9" * 400 + b"}", "300 digits"),
        (b'{"steps": null}', "Expected `int`, got `null` - at `$[...]`"),
        (b'{"steps": true}', "Expected `int`, got `bool`"),
        (b'{"steps": 1', "truncated"),
        (b"\xff", "utf-8"),
        (b"", "truncated"),
    ],
)
def test_json_that_is_not_what_it_must_be_is_refused_in_one_line_that_names_the_file(
    document: bytes, said: str, tmp_path: Path
) -> None:
    kind = dict[str, object] if b"other" in document else dict[str, int]
    (tmp_path / "run.json").write_bytes(document)
    with pytest.raises(ValueError, match=r"run\.json is refused") as error:
        read_json(tmp_path / "run.json", kind)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_json_is_read_as_the_type_it_must_be() -> None:
    assert decode_json(b'{"a": [1.5, 2]}', dict[str, list[float]], "x") == {"a": [1.5, 2.0]}
