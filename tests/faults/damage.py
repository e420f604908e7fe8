"""A seeded generator of damaged files: what a disk, a broken transfer or somebody hostile makes of a good one.

``for data, what in damages(good, 1000, seed=0, edit=json_edit)`` gives a thousand of them, with a word on each.

A kind of file adds what only it can suffer as an ``edit``: a function of the good bytes and a ``random.Random`` that
returns bytes. :func:`json_value` swaps one value within JSON for another type, a very long number, or deep nesting.
"""

import copy
import json
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Edit = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One to four bits are others."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def truncated(data: bytes, draw: random.Random) -> bytes:
    """The beginning of it."""
    return data[: draw.randrange(max(1, len(data)))]


def garbage(data: bytes, draw: random.Random) -> bytes:
    """Random bytes, of up to twice the length, sometimes after the first bytes of the good file."""
    kept = draw.choice((0, 0, 4, 8, 16, 64))
    return data[:kept] + draw.randbytes(draw.randrange(2 * len(data) + 1))


def overwritten(data: bytes, draw: random.Random) -> bytes:
    """A stretch in the middle is zeros, ones or noise, as of a block that was never written."""
    start = draw.randrange(max(1, len(data)))
    length = min(draw.randint(1, 512), len(data) - start)
    filling = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    return data[:start] + filling + data[start + length :]


def spliced(data: bytes, draw: random.Random) -> bytes:
    """A stretch is missing, doubled, or moved to another place."""
    first, second = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    middle = data[first:second]
    place = draw.randrange(len(data) + 1)
    return draw.choice((data[:first] + data[second:], data[:second] + middle + data[second:], data[:place] + middle))


def extended(data: bytes, draw: random.Random) -> bytes:
    """Something stands behind its end."""
    return data + draw.choice((b"\0", b"\n", data, draw.randbytes(64)))


PLAIN: tuple[Edit, ...] = (flipped, truncated, garbage, overwritten, spliced, extended)

#: JSON that stands where something else is expected; a raw text may be JSON that Python's writer would never write.
STRANGE_JSON = (
    "null", "true", "false", "0", "-1", "5", "1e999", "-1e-400", "NaN", "Infinity", '""',
    '"x"', '"\\u0000"', "[]", "{}",
    "9" * 400, "1" + "0" * 18, "1" + "0" * 10, "100000", "0.5", "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000,
    "[null]",
    '["a", 1]', '{"x": null}', '"' + "y" * 5000 + '"', "[[[[0]]]]", "-0.0", "1.5",
)  # fmt: skip


def json_value(text: str, draw: random.Random) -> str:
    """JSON text with one value, anywhere in it, swapped for a strange one, left out, or named otherwise."""
    value = copy.deepcopy(json.loads(text))
    places = list(_places(value))
    if not places:
        return draw.choice(STRANGE_JSON)
    holder, key = draw.choice(places)
    kind = draw.random()
    if kind < 0.1:
        del holder[key]
    elif kind < 0.2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        marker = "\ue000here\ue000"
        holder[key] = marker
        return json.dumps(value, ensure_ascii=False).replace(f'"{marker}"', draw.choice(STRANGE_JSON), 1)
    return json.dumps(value)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container within with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from _places(part)


def json_edit(data: bytes, draw: random.Random) -> bytes:
    """The edit of a file that is one JSON document."""
    return json_value(data.decode(), draw).encode()


def damages(good: bytes, count: int, *, seed: int, edit: Edit | None = None) -> Iterator[tuple[bytes, str]]:
    """Damaged copies of a file, each with the name of its damage and its number, which make it again.

    Args:
        good: the whole file.
        count: how many.
        seed: of all of them.
        edit: what only this kind of file can suffer; half of the damages are such.
    """
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        kind = edit if edit is not None and number % 2 else draw.choice(PLAIN)
        data = kind(good, draw)
        for _ in range(draw.choice((0, 0, 0, 1))):
            data = draw.choice(PLAIN)(data, draw)
        yield data, f"{kind.__name__} {seed}/{number}"


@contextmanager
def memory_bound(megabytes: int) -> Iterator[None]:
    """Within, the process's peak of memory must not grow by more than so much.

    Raises:
        AssertionError: if it did.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown <= megabytes, f"memory grew by {grown:.0f} MB"
