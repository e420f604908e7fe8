"""Stopping cleanly: a signal is noted, and obeyed after the current step."""

import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

#: Ctrl-C; what ends jobs; and what a terminal or a connection sends that is closed, where the system has it.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def never() -> bool:
    """Do not stop."""
    return False


class StopSignal:
    """Within ``with``, the first SIGINT, SIGTERM or SIGHUP is only noted; a second one of the kind acts as before.

    A SIGHUP that is ignored, as ``nohup`` has it, stays ignored. Outside the main thread, where Python delivers no
    signals, nothing is ever noted.

    Args:
        on_signal: called when one is noted, in a thread of its own. What it needs (the lock of a progress bar, the
            buffer of standard error) the main thread may hold, which the signal interrupts anywhere: called there, it
            would wait for ever. It is over before this object says that it is time to stop.

    Example:
        >>> with StopSignal() as stop:
        ...     stop()
        False
    """

    def __init__(self, on_signal: Callable[[], None] | None = None) -> None:
        self.received: int | None = None
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}
        self._noted: queue.SimpleQueue[bool] = queue.SimpleQueue()  # the one queue that a signal may interrupt
        self._teller: threading.Thread | None = None

    def __call__(self) -> bool:
        """True once a signal was noted."""
        if self.received is None:
            return False
        self._finish_telling()
        return True

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, as shells have it; 0 after the others, which ask for a clean end and got one."""
        return 130 if self.received in (None, signal.SIGINT) else 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            if self._on_signal is not None:
                self._teller = threading.Thread(target=self._tell, args=(self._on_signal,), daemon=True)
                self._teller.start()
            heard = [n for n in _SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *error: object) -> None:
        self._finish_telling()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])
        self._noted.put(True)

    def _tell(self, on_signal: Callable[[], None]) -> None:
        while self._noted.get():
            with suppress(OSError):  # the terminal is gone, which is why there is a signal
                on_signal()

    def _finish_telling(self) -> None:
        if self._teller is not None:
            self._noted.put(False)
            self._teller.join()
            self._teller = None
