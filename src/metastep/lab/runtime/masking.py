"""Passwords in the URLs of databases, which are neither shown nor written down."""

import re
from urllib.parse import unquote

_LOGIN = re.compile(r"(://[^:@/\s]*):(\S*)@")  # to the last @: one in the password may have been left unquoted
_QUERY = re.compile(r"([?&](?:password|passwd|pwd)=)[^&\s]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """Return a storage URL, or a text with one in it, that may be shown and written down.

    Example:
        >>> without_password("postgresql://ann:secret@host/trials")
        'postgresql://ann:***@host/trials'
        >>> without_password("postgresql://host/trials?user=ann&password=secret")
        'postgresql://host/trials?user=ann&password=***'
    """
    return _QUERY.sub(r"\1***", _LOGIN.sub(r"\1:***@", text))


def without_password_of(storage: str, text: str) -> str:
    """Return what a driver says of a storage URL without its password, whole or cut in two at an @ within it.

    Example:
        >>> without_password_of("postgresql://ann:sec@ret@host/x", "cannot resolve host ret@host")
        'cannot resolve host ***@host'
    """
    if (found := _LOGIN.search(storage)) is not None and (password := found[2]):
        for part in (password, unquote(password), f"{password.rpartition('@')[2]}@"):
            text = text.replace(part, "***@" if part.endswith("@") else "***")
    return without_password(text)
