"""Signals that are noted, and obeyed after the current step."""

import signal

import pytest

from metastep.lab.runtime.stop_signals import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
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
