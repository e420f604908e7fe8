"""Signals that are noted, and obeyed after the current step."""

import signal

import pytest

from metastep.lab.runtime.stop_signals import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_the_first_signal_is_noted_and_the_second_obeyed(number: int, code: int) -> None:
    before = []
    handler = signal.signal(number, lambda *_: before.append(number))
    told = []
    try:
        with StopSignal(lambda: told.append("stopping")) as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            assert (stop.exit_code, told, before) == (code, ["stopping"], [])
            signal.raise_signal(number)
            assert before == [number]
        signal.raise_signal(number)
        assert before == [number, number]
        assert told == ["stopping"]
    finally:
        signal.signal(number, handler)


def test_a_hangup_that_is_ignored_as_under_nohup_stays_ignored() -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_stopping() -> None:
    def gone() -> None:
        raise OSError("Input/output error")

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not ignored, as it is where the tests run under nohup
    try:
        with StopSignal(gone) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
