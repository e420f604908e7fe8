r"""Equations as pictures that need no script, no font and no network: an extension of Python-Markdown.

``pymdownx.arithmatex`` finds ``$...$`` and ``$$...$$``; matplotlib sets them, as outlines in an inline SVG that takes
the colour of the text around it. Its LaTeX source is what a screen reader says, and what a code host sets itself.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import matplotlib as mpl
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

if TYPE_CHECKING:
    from markdown import Markdown

SIZE = 100.0  # units of the outlines in an em
_COMMANDS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
#: What LaTeX has and matplotlib's subset of it writes otherwise; in this order.
_SPELLINGS = [
    (r"\\t?frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
    (r"\\tfrac\b", r"\\frac"),
    (r"\\(sqrt|mathrm|mathbf|mathcal|mathbb|hat|tilde|bar)\s*(\\[A-Za-z]+|(?<=\s)[A-Za-z0-9])", r"\\\1{\2}"),
    (r"\\(le|ge|ne)(?![A-Za-z])", r"\\\1q"),
    (r"\\[lr]Vert\b", r"\\Vert"),
    (r"\\[lr]vert\b", "|"),
    (r"\\[bB]ig{1,2}[lrm]?(?![A-Za-z])", ""),
    (r"(?<!\\)&", ""),  # alignment
    ("'", "′"),  # which stands high enough already
    (r"\s+", " "),
]


def _path(outline: Outline) -> str:
    """The ``d`` of an SVG path; y points down there."""
    parts = []
    for vertices, code in outline.iter_segments(simplify=False, curves=True):
        if code == Outline.CLOSEPOLY:
            parts.append("Z")
            continue
        numbers = [f"{value if i % 2 == 0 else -value:.1f}".removesuffix(".0") for i, value in enumerate(vertices)]
        parts.append(_COMMANDS[code] + " ".join(numbers))
    return "".join(parts)


@cache
def svg(source: str, *, display: bool = False) -> str:
    r"""Draw an equation.

    Args:
        source: LaTeX as far as matplotlib knows it, without dollars.
        display: whether it stands on a line of its own, where fractions have room.

    Raises:
        ValueError: if it cannot be read; the message shows where.

    >>> svg(r"\alpha")[:26]
    '<svg class="equation" role'
    """
    readable = source.strip()
    for latex, ours in _SPELLINGS:
        readable = re.sub(latex, ours, readable)
    if display:
        readable = readable.replace(r"\frac", r"\dfrac")
    math = f"${readable}$"
    with mpl.rc_context({"mathtext.fontset": "stix"}):
        try:
            width, _, depth, *_ = MathTextParser("path").parse(math, dpi=72, prop=FontProperties(size=SIZE))
            outline = TextPath((0, 0), math, size=SIZE, prop=FontProperties(family="STIXGeneral"))
        except ValueError as error:
            raise ValueError(
                f"equation cannot be read, got {source!r}; write it in matplotlib's LaTeX: {error}"
            ) from None
    box = outline.get_extents()
    left, right = min(box.x0, 0.0), max(box.x1, float(width))
    top, bottom = box.y1 + 2, min(box.y0 - 2, 0.0 if depth <= 1 else -float(depth))
    label = readable.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        f'<svg class="equation" role="img" aria-label="{label}" fill="currentColor" '
        f'viewBox="{left:.0f} {-top:.0f} {right - left:.0f} {top - bottom:.0f}" '
        f'style="width:{(right - left) / SIZE:.3f}em;height:{(top - bottom) / SIZE:.3f}em;'
        f'vertical-align:{bottom / SIZE:.3f}em"><path d="{_path(outline)}"/></svg>'
    )


class _Draw(Treeprocessor):
    """Replaces what arithmatex found."""

    def run(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            if element.get("class") == "arithmatex" and element.text:
                found = re.fullmatch(r"\s*\\[(\[](.*)\\[)\]]\s*", element.text, re.DOTALL)
                if found is None:
                    raise ValueError(f"not an equation: {element.text!r}")
                lines = [part for part in re.split(r"\\\\(?=\s|$)", found[1]) if part.strip()]
                display = element.tag == "div"
                drawn = [self.md.htmlStash.store(svg(line.strip(), display=display)) for line in lines]
                element.text = None
                element.set("class", "equations" if display else "equation")
                if not display:
                    element.text = drawn[0]
                for one in drawn if display else []:
                    ElementTree.SubElement(element, "span", {"class": "line"}).text = one


class Equations(Extension):
    r"""``$...$`` in a line, ``$$...$$`` on lines of their own, where ``\\`` at a line's end begins another."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - its name there
        """Runs after the inline patterns, before raw HTML is put back."""
        md.registerExtensions(["pymdownx.arithmatex"], {"pymdownx.arithmatex": {"generic": True}})
        md.treeprocessors.register(_Draw(md), "equations", 5)


def makeExtension(**settings: object) -> Equations:  # noqa: N802 - its name there
    """What Python-Markdown asks a module for."""
    return Equations(**settings)
