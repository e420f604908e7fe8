"""Trials in a real PostgreSQL: two workers at once, a server that is lost on the way, and what nobody gets to see."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.bench.experiments import all_timeless, executed, plan
from tests.lab.bench.running import differences

from metastep.lab.bench.runner import ExperimentRun
from metastep.lab.bench.tuning import StorageUnreachable, check_storage
from metastep.lab.runtime.executor import LocalExecutor

pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
PASSWORD = "s3cr3t-w0rd"


def binary(name: str) -> str | None:
    """Where a program of PostgreSQL is: on the path, or where Debian keeps those of a server."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(kept[-1]) if kept else None)


class Server:
    """A cluster in a folder of its own, which its programs refuse to run as root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user = "nobody" if os.getuid() == 0 else None
        if self._user is not None:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://ann:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self._call("initdb", "-U", "ann", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync")

    def _call(self, program: str, *arguments: str) -> None:
        place = binary(program)
        assert place is not None
        command = [place, "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(command, user=self._user, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a crash would."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    @property
    def runs(self) -> bool:
        """Whether it has been started, and not stopped."""
        return (self.folder / "data" / "postmaster.pid").exists()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that runs, with one user who needs a password."""
    if binary("initdb") is None or binary("pg_ctl") is None:
        pytest.skip("PostgreSQL (initdb, pg_ctl) is not installed")
    folder = Path(tempfile.mkdtemp(prefix="metastep-postgres-"))
    try:
        made = Server(folder)
        made.start()
        try:
            yield made
        finally:
            if made.runs:
                made.stop()
    finally:
        shutil.rmtree(folder)


def holding_the_password(folder: Path) -> list[str]:
    """Files below a folder in which the password stands."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and PASSWORD.encode() in file.read_bytes()]


def test_two_workers_keep_their_trials_in_it_and_find_what_a_journal_finds(server, start, tmp_path: Path) -> None:
    arguments = "--tasks digits/mlp,wine/mlp --methods sgd/constant,adamw/cosine --set steps=12 --budgets 1,3 --seeds 1"
    command = ("experiment", "field/small", *arguments.split(), "--json")
    child = start(*command, "--workers", "2", "--storage", server.url, "--out", "there")
    assert child.end() == 0, child.err
    assert PASSWORD not in child.out + child.err
    assert holding_the_password(tmp_path / "there") == []
    assert not list((tmp_path / "there").rglob("*.journal"))
    child = start(*command, "--out", "here")
    assert child.end() == 0, child.err
    assert len(all_timeless(tmp_path / "here")) == 16
    assert differences(all_timeless(tmp_path / "there"), all_timeless(tmp_path / "here")) == []


def test_a_server_that_is_lost_on_the_way_is_said_in_a_line_and_nothing_is_lost(server, tmp_path: Path) -> None:
    lost = []

    def lose(progress) -> None:
        if progress.label.endswith("search") and progress.run is None and not lost:
            lost.append(progress.label)
            server.stop()

    small = replace(plan(), study="lost-on-the-way")
    with pytest.raises(StorageUnreachable, match="storage must be an Optuna storage that can be reached") as raised:
        ExperimentRun(small, tmp_path / "there", storage=server.url).execute(LocalExecutor(), on_progress=lose)
    assert lost
    assert PASSWORD not in str(raised.value)
    assert "\n" not in str(raised.value)
    server.start()
    again = ExperimentRun.resume(tmp_path / "there", storage=server.url)
    assert again.execute(LocalExecutor()) is not None
    assert holding_the_password(tmp_path) == []
    executed(tmp_path / "here", small)
    assert differences(all_timeless(tmp_path / "there"), all_timeless(tmp_path / "here")) == []


def test_a_wrong_password_is_not_shown_either(server) -> None:
    wrong = server.url.replace(PASSWORD, "wr0ng-w0rd")
    with pytest.raises(StorageUnreachable, match="password authentication failed for user") as raised:
        check_storage(wrong)
    assert "wr0ng" not in str(raised.value)
