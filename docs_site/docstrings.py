"""Lets docstrings be pages: an extension of griffe that turns their few reStructuredText roles into Markdown."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import griffe

from docs_site.stage import public_names

#: What the reference has an entry for; anything else that a docstring names is code.
_PUBLIC = frozenset(public_names("metastep"))


def _display(found: re.Match[str]) -> str:
    indent = found[1]
    lines = [line.strip() for line in found[2].splitlines() if line.strip()]
    return "\n".join([f"{indent}$$", *(indent + line for line in lines), f"{indent}$$"])


def _reference(found: re.Match[str]) -> str:
    target = found[2].removeprefix("~")
    shown = target.rpartition(".")[2] if found[2].startswith("~") else target
    package, _, rest = target.partition(".")
    documented = package == "metastep" and rest.partition(".")[0] in _PUBLIC
    return f"[`{shown}`][{target}]" if documented else f"`{shown}`"


def to_markdown(text: str) -> str:
    r"""Rewrite a docstring.

    >>> to_markdown(r"The scale :math:`\gamma` of :class:`metastep.MLRSNet`, see ``docs/optimizers.md``.")
    'The scale $\\gamma$ of [`metastep.MLRSNet`][metastep.MLRSNet], see [optimizers](../optimizers.md).'
    """
    text = re.sub(r"^( *)\.\. math:: *\n? *(.*?)(?=\n *\n|\Z)", _display, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r":math:`([^`]+)`", lambda found: f"${' '.join(found[1].split())}$", text)
    text = re.sub(r":(class|func|meth|mod|attr|exc|obj):`([^`]+)`", _reference, text)
    text = re.sub(r"``?docs/([\w-]+)\.md``?", lambda found: f"[{found[1]}](../{found[1]}.md)", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return text.replace("``", "`")


class Docstrings(griffe.Extension):
    """Rewrites every docstring that is collected, and gives the package the names that it offers when it runs."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Runs once: the public names follow from registries, which are not read from the source."""
        package = import_module("metastep")
        for name in sorted(_PUBLIC - pkg.members.keys()) if pkg.name == "metastep" else ():
            target = f"{getattr(package, name).__module__}.{name}"
            pkg.set_member(name, griffe.Alias(name, target, parent=pkg))

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Runs on modules, classes, functions and attributes alike."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
