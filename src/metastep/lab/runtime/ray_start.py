"""Reach a Ray cluster, or start one on this machine."""

import importlib
import socket
from typing import Any

#: Ray itself waits for minutes where nobody answers.
_SECONDS = 5.0
_QUIET = {"log_to_driver": False, "configure_logging": False}


def ray_started(address: str | None) -> tuple[Any, bool]:
    """Return the module ``ray``, connected, and whether this call connected it, so that who asked is to shut it down.

    Args:
        address: of a running cluster ("auto", "ray://host:10001", ...); None starts one on this machine.

    Raises:
        ModuleNotFoundError: without ray.
        ConnectionError: if there is no cluster at the address.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("engine ray needs Ray; pip install metastep[ray].") from error
    ours = not ray.is_initialized()
    if ours:
        knock(address)
        try:
            ray.init(address=address or "local", include_dashboard=None if address else False, **_QUIET)
        except (ConnectionError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at {address!r} ({error}); start one: ray start --head.") from error
    return ray, ours


def knock(address: str | None) -> None:
    """Make sure that somebody listens at HOST:PORT; other addresses are Ray's to find.

    Raises:
        ConnectionError: if nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster at {address!r} ({error}); start one: ray start --head.") from error
