"""The schedules that come with the package: ``NAME.safetensors``, and ``NAME.md``, its card."""

from importlib.resources import files
from importlib.resources.abc import Traversable

_SUFFIX = ".safetensors"


def shipped_schedules() -> dict[str, str]:
    """Return the names that :func:`metastep.load_schedule` knows, each with one line from its card.

    Each of them was trained by a command that its card gives, with what it did on other tasks and where it loses.

    Example:
        >>> shipped_schedules()["mlrsnet-cifar10"]
        'MLR-SNet, three phases, learned on CIFAR-10 with a ResNet-8'
    """
    names = sorted(entry.name.removesuffix(_SUFFIX) for entry in _folder().iterdir() if entry.name.endswith(_SUFFIX))
    return {name: _summary(shipped_card(name)) for name in names}


def shipped_file(name: str) -> Traversable | None:
    """The file of a shipped schedule; None if there is no schedule of that name."""
    file = _folder() / f"{name}{_SUFFIX}"
    return file if _is_plain(name) and file.is_file() else None


def shipped_card(name: str) -> str:
    """The card of a shipped schedule, as Markdown: how it was trained, what it did elsewhere, its limits.

    Raises:
        FileNotFoundError: if there is no schedule of that name.
    """
    return (_folder() / f"{name}.md").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return files(__name__)


def _is_plain(name: str) -> bool:
    """Whether it is a name, and no path out of the folder."""
    return bool(name) and not set(name) & set("/\\:") and not name.startswith(".")


def _summary(card: str) -> str:
    """The first line of text below the title, without its full stop."""
    body = f"\n{card}".partition("\n# ")[2].splitlines()[1:]
    return next((line for line in body if line.strip()), "").rstrip(".")
