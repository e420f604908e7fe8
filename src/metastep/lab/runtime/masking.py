"""Secrets in the URLs of databases, which are neither shown nor written down."""

import re
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

MASK = "***"

#: Names of URL query values that are shown; every other value may be a secret, whatever it is called.
_HARMLESS = {
    *("user", "username", "host", "port", "dbname", "database", "charset", "client_encoding", "sslmode", "driver"),
    *("timeout", "connect_timeout", "application_name", "target_session_attrs"),
}
#: Settings in a place that should hold a name: a URL of another form, in which a secret may stand anywhere.
_SETTINGS = re.compile(r"[=;]")
_BETWEEN_WORDS = re.compile(r"[:/?&=;@,+%{}\s]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def masked(text: str) -> str:
    """Return a storage URL, or a command-line argument that ends in one, as it may be shown and written down.

    The password, and every query value that is not known to be harmless, become ``***``. A URL that SQLAlchemy cannot
    read, or that is met where SQLAlchemy is not installed, keeps only its scheme.

    Example:
        >>> masked("postgresql://ann:secret@host/trials?sslmode=require")
        'postgresql://ann:***@host/trials?sslmode=require'
        >>> masked("--storage=postgresql://host/trials?user=ann&token=secret")
        '--storage=postgresql://host/trials?token=***&user=ann'
    """
    found = _SCHEME.search(text)
    if found is None:
        return text
    before, url, scheme = text[: found.start()], text[found.start() :].strip(), found[0]
    parsed = _parsed(url)
    if parsed is None or _SETTINGS.search(unquote(f"{parsed.username or ''}{parsed.host or ''}")):
        return f"{before}{scheme}{MASK}"
    user, separated, _ = (parsed.username or "").partition(":")
    in_file = parsed.drivername.startswith("sqlite")
    shown = parsed.set(
        username=user if separated else parsed.username,
        password=MASK if separated or parsed.password is not None else None,
        host=None if parsed.host is None else _plain(parsed.host.rpartition("@")[2]),
        database=parsed.database if in_file else _plain(parsed.database),
        query={name: _plain(value) if name.lower() in _HARMLESS else MASK for name, value in parsed.query.items()},
    )
    if shown == parsed:
        return text
    return before + str(shown.render_as_string(hide_password=True)).replace(quote(MASK, safe=""), MASK)


def masked_message(url: str, message: str) -> str:
    """Return what a driver says about a storage URL without any word of the URL that :func:`masked` hides.

    A message that repeats a secret of fewer than four characters is withheld, because masking would not hide it.

    Example:
        >>> masked_message("postgresql://ann:open@sesame@host/x", "cannot resolve host sesame@host")
        'cannot resolve host ***@host'
    """
    shown = masked(url)
    message = message.replace(url, shown)
    for secret in sorted(_words(url) - _words(shown), key=len, reverse=True):
        if secret in message:
            if len(secret) < 4:
                return "the driver's message holds a secret and is withheld"
            message = message.replace(secret, MASK)
    return message


def _parsed(url: str) -> Any | None:
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError:
        return None
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # such as a port that is no number
        return None


def _plain(value: Any) -> Any:
    """A name as it is; what may hold a secret, masked."""
    return MASK if value is not None and re.search(r"[=;:@]", unquote_plus(str(value))) else value


def _words(text: str) -> set[str]:
    """The words of a URL, as written and as decoded."""
    return {word for form in (text, unquote(text), unquote_plus(text)) for word in _BETWEEN_WORDS.split(form) if word}
