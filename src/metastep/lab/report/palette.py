"""Colours that people with any colour vision can tell apart, one set per background.

The hues follow Okabe and Ito (2008); lightness is moved so that every line has a contrast of 3 or more
against its background. Slot 0 belongs to the learned schedule. Beyond the eighth line the colours return, dashed.
"""

from __future__ import annotations

LIGHT = ("#d1480b", "#0a6fb3", "#0b8a66", "#b0568f", "#a87b00", "#2f9bd0", "#5f6670", "#6b4fb0")
DARK = ("#ff8548", "#4f9fe8", "#2fc795", "#e08fc0", "#e3b53c", "#8fd2ff", "#a3abb5", "#b39ff0")
LIGHT_BACKGROUND = "#ffffff"
DARK_BACKGROUND = "#161a20"
DASHES = ("solid", "dash", "dot", "dashdot")


def colour(slot: int, palette: tuple[str, ...] = LIGHT) -> str:
    """Return the colour of the line in this slot."""
    return palette[slot % len(palette)]


def dash(slot: int) -> str:
    """Return the dash of the line in this slot, by plotly's names."""
    return DASHES[slot // len(LIGHT) % len(DASHES)]


def as_css() -> str:
    """Return the palette as CSS variables --line-0 ..., following the reader's colour scheme."""
    light, dark = (
        "".join(f"--line-{slot}:{value};" for slot, value in enumerate(palette)) for palette in (LIGHT, DARK)
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
