"""Unknown names get the nearest known ones."""

import difflib
from collections.abc import Iterable

FEW = 20  # names that fit an error


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is not in a table: with the nearest, all of them, or what lists them."""
    names = list(known)
    kind = "settings" if what == "set" else what.lstrip("-").lower().rstrip("s") + "s"
    if near := difflib.get_close_matches(name, names, n=3):
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"known: {', '.join(names)}." if len(names) <= FEW else f"`metastep list {kind}` names all {len(names)}."
    return ValueError(f"{what} must be a known name, got {name!r}; {hint}")
