"""One look for all figures: colours that colour-blind readers tell apart, those of the page, and bytes that repeat."""

from __future__ import annotations

import logging
import unicodedata
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import seaborn as sns  # noqa: E402
from matplotlib import font_manager  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

LABEL_COLOURS = {
    "diagonal": "#C65200",
    "local": "#02629C",
    "token-specific": "#05A388",
    "content-based": "#7D62A8",
    "global": "#4A4946",
    "sink": "#9A7400",
    "mixed": "#AD4F7C",
}
LETTERS = {
    "diagonal": "D", "local": "L", "token-specific": "T", "content-based": "C", "global": "G", "sink": "S",
    "mixed": "M",
}  # fmt: skip
INK, MUTED, ACCENT, SECOND = "#1b1f24", "#6b7280", "#0072B2", "#D55E00"

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a fallback may have no regular weight
FONT = "DejaVu Sans"  # ships with matplotlib: the same glyphs everywhere
NEVER_DRAWN = {"Cc", "Cn", "Cs"}  # control characters, no characters, halves of one: most are no XML either

sns.set_theme(
    style="ticks",
    rc={
        "font.family": [FONT],  # `legible` adds to it
        "text.parse_math": False,  # people's text is no formula: a $ is a $
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelsize": 9,
        "axes.titlesize": 10,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "text.color": INK,
        "axes.labelcolor": INK,
        "svg.hashsalt": "picollm",
        "figure.constrained_layout.use": True,
    },
)


def legible(text: str) -> str:
    """People's text as figures can show it; a character that no font of this machine has becomes its code point."""
    return "".join(char if drawable(char) else f"⟨{ord(char):04X}⟩" for char in text)


@cache
def drawable(char: str) -> bool:
    """Whether a font has the character. From now on figures fall back on that font, where it is not ours."""
    if unicodedata.category(char) in NEVER_DRAWN:
        return False
    if ord(char) in characters(font_manager.findfont(FONT)):
        return True
    found = next((family for family, path in fallbacks().items() if ord(char) in characters(path)), None)
    if found and found not in plt.rcParams["font.family"]:
        plt.rcParams["font.family"] = [*plt.rcParams["font.family"], found]
    return found is not None


@cache
def fallbacks() -> dict[str, str]:
    """{family: file} of the machine's fonts; matplotlib's own others are for formulas, or boxes for everything."""
    manager, own = font_manager.fontManager, matplotlib.get_data_path()
    for path in set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}:
        with suppress(Exception):  # newer than matplotlib's list of fonts, but of a kind that it can't read
            manager.addfont(path)
    families = sorted({entry.name for entry in manager.ttflist if not entry.fname.startswith(own)})
    return {family: font_manager.findfont(family) for family in families}


@cache
def characters(font: str) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(font).get_charmap())
    except (OSError, RuntimeError):  # uninstalled, or damaged
        return frozenset()


def save(figure: Figure, path: str | Path | BinaryIO, suffix: str) -> None:
    """No date and no version inside: the same data give the same bytes. `suffix`: .svg or .png."""
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(path, format=suffix[1:], dpi=110, metadata=metadata)
    plt.close(figure)
