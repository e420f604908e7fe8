"""No more space, or no leave to write: one line says so, the last good checkpoint stays, and a resume ends as ever.

The limit on the size of files that the kernel keeps for a process (RLIMIT_FSIZE) stands for the full disk: it is set
while the command runs, and every write beyond it fails. Root may write anywhere; where the tests are run by root, what
is not to write gives up that privilege (CAP_DAC_OVERRIDE) first.
"""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.commands import COMMANDS, begun, checkpoints, weights_and_records
from tests.lab.bench.running import Child, _metastep, _server, differences

from metastep.files import write_atomically
from metastep.lab.runtime.folder import CheckpointFile

resource = pytest.importorskip("resource", reason="no limits on the size of files here")
_SPACE = 3000  # bytes a file: messages have room, checkpoints have not


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_full_disk_says_so_and_ends_like_an_undisturbed_one_when_there_is_space(
    command: str, undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    child, out = start(*COMMANDS[command], "--out", "out"), tmp_path / "out"
    begun(child)
    resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (_SPACE, _SPACE))
    assert child.end() == 2, child.err
    line = child.err.strip().splitlines()[-1]  # after the bar
    assert "Traceback" not in child.err
    assert line.startswith("error: ")
    assert "File too large" in line
    assert line.endswith(f"the last good checkpoint is kept, resume with: metastep {command} --resume out")
    kept = [CheckpointFile(path).load() for path in checkpoints(out)]
    assert all(note is None and state["trainer"]["steps"] > 0 for state, note in kept)
    assert not list(out.rglob("*.part"))
    child = start(command, "--resume", "out")
    assert child.end() == 0, child.err
    assert differences(weights_and_records(command, out), weights_and_records(command, undisturbed(command))) == []


@pytest.mark.parametrize("command", [*COMMANDS, "meta-train of two tasks"])
def test_a_folder_below_a_file_is_refused_in_a_line(command: str, start: Callable[..., Child], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = COMMANDS.get(command, ("meta-train", "digits/mlp", "wine/mlp", "--steps", "20", "--every", "5"))
    child = start(*arguments, "--out", "file/out")
    assert child.end() == 2
    (line,) = child.err.strip().splitlines()
    assert line.startswith("error: [Errno 20] Not a directory: ")
    assert (tmp_path / "file").read_text() == ""


class Unprivileged(Child):
    """The same, bound by the permissions of files whoever runs it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = _server.Process(target=_unprivileged, args=(str(folder), arguments))
        self.process.start()


def _unprivileged(folder: str, arguments: tuple[str, ...]) -> None:
    if os.geteuid() == 0:
        _obey_permissions()
    _metastep(folder, arguments, None)


def _obey_permissions() -> None:
    """Give up what lets root pass over the permissions of files: Linux's capabilities 1 and 2."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, data) == 0:
        data[0] &= ~0b110
        libc.capset(header, data)


def obeys_permissions(folder: Path) -> None:
    """Exit code 0 if the folder cannot be written to."""
    _obey_permissions()
    os._exit(int(os.access(folder, os.W_OK, effective_ids=True)))


def test_a_read_only_folder_stops_a_resume_in_a_line_and_costs_nothing(
    undisturbed: Callable[[str], Path], start: Callable[..., Child], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    child = start(*COMMANDS["train"], "--out", "out")
    begun(child)
    child.signal(signal.SIGKILL)
    child.end()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    out.chmod(0o555)
    try:
        trial = _server.Process(target=obeys_permissions, args=(out,))
        trial.start()
        trial.join()
        if trial.exitcode != 0:
            pytest.skip("this user may write to read-only folders, and cannot give that up here")
        child = Unprivileged(tmp_path, "train", "--resume", "out")
        assert child.end() == 2, child.err
    finally:
        out.chmod(0o777)
    line = child.err.strip().splitlines()[-1]
    assert line.startswith("error: [Errno 13] Permission denied: ")
    assert line.endswith("the last good checkpoint is kept, resume with: metastep train --resume out")
    assert {path: path.read_bytes() for path in before} == before
    child = start("train", "--resume", "out")
    assert child.end() == 0, child.err
    assert differences(weights_and_records("train", out), weights_and_records("train", undisturbed("train"))) == []


@pytest.mark.parametrize("number", range(1, 5))
def test_a_write_that_fails_at_any_file_operation_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")
    left = number

    def failing(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(28, "No space left on device")
            return operation(*args, **kwargs)

        return call

    for name in ("open", "fsync", "chmod", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    monkeypatch.undo()
    assert file.read_text() in ("old", "new")  # the last operation may be the sync of the folder after the rename
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
