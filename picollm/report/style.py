"""Common style of all figures and the page: colours safe for colour-blind readers, sizes, and reproducible bytes."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import seaborn as sns  # noqa: E402
from matplotlib import font_manager  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from picollm.attention.labels import LABELS  # noqa: E402

OWN = ("#C65200", "#02629C", "#05A388", "#7D62A8", "#4A4946", "#9A7400", "#AD4F7C")
OWN_ON_DARK = ("#E8702A", "#3A93DC", "#8EEAC4", "#B59AE0", "#A3A29E", "#D9B23C", "#E08FB4")
LABEL_COLOURS = dict(zip(LABELS, OWN, strict=True))  # changed by `set_up`
SETTINGS = {"size": 1.0}
RESOLUTION = 110  # dots per inch of a PNG
SMALLEST = 7  # points of the smallest text: at least 9 pixels if a figure is shown at its own size
LETTERS = {
    "diagonal": "D", "local": "L", "token-specific": "T", "content-based": "C", "global": "G", "sink": "S",
    "mixed": "M",
}  # fmt: skip
INK, MUTED, ACCENT, SECOND = "#1b1f24", "#6b7280", "#0072B2", "#D55E00"

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a fallback font may lack a regular weight
FONT = "DejaVu Sans"  # ships with matplotlib: the same glyphs everywhere
NEVER_DRAWN = {"Cc", "Cn", "Cs"}  # control characters, unassigned ones, surrogates: most are not valid XML either

sns.set_theme(
    style="ticks",
    rc={
        "font.family": [FONT],  # extended by `drawable`
        "text.parse_math": False,  # users' text contains no formulas: a $ is a $
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


def set_up(size: float, palette: str) -> None:
    """Sets the scale of all later figures, whose text keeps its size, and the classes' colours, by the name of one of
    seaborn's palettes or `picollm`."""
    SETTINGS["size"] = size
    LABEL_COLOURS.update(zip(LABELS, colours(palette), strict=True))


def colours(palette: str, dark: bool = False) -> tuple[str, ...]:
    """Returns one colour per class."""
    if palette == "picollm":
        return OWN_ON_DARK if dark else OWN
    return tuple(to_hex(colour) for colour in sns.color_palette(palette, len(LABELS)))


def css(palette: str, dark: bool = False) -> str:
    """Returns the classes' colours as CSS variables for the page's style sheet."""
    return " ".join(
        f"--{label}: {colour.lower()};" for label, colour in zip(LABELS, colours(palette, dark), strict=True)
    )


def every(names: Sequence[object], inches: float) -> list[int]:
    """Returns the indices of names that fit along an axis without touching: all, or every n-th."""
    step = max(1, -(-len(names) * SMALLEST * 1.15 // (72 * inches * SETTINGS["size"])))
    return list(range(0, len(names), int(step)))


def scaled(wide: float, high: float) -> tuple[float, float]:
    """Scales a figure's usual size in inches."""
    return wide * SETTINGS["size"], high * SETTINGS["size"]


def legible(text: str) -> str:
    """Converts text so that figures can show it; a character that no font on this machine has becomes a code point."""
    return "".join(char if drawable(char) else f"⟨{ord(char):04X}⟩" for char in text)


@cache
def drawable(char: str) -> bool:
    """Returns True if a font has the character. If it is not FONT, all later figures fall back on that font."""
    if unicodedata.category(char) in NEVER_DRAWN:
        return False
    if ord(char) in characters(font_manager.findfont(FONT)):
        return True
    fallback = next((family for family, path in fallbacks().items() if ord(char) in characters(path)), None)
    if fallback and fallback not in plt.rcParams["font.family"]:
        plt.rcParams["font.family"] = [*plt.rcParams["font.family"], fallback]
    return fallback is not None


@cache
def fallbacks() -> dict[str, str]:
    """Returns {family: file} of the machine's fonts; matplotlib's other fonts are for formulas, or show only boxes."""
    manager, own = font_manager.fontManager, matplotlib.get_data_path()
    for path in set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}:
        with suppress(Exception):  # newer than matplotlib's list of fonts, but in a format that it can't read
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
    """Saves a figure without date and version, so that equal data give equal bytes. `suffix` is .svg or .png."""
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(path, format=suffix[1:], dpi=RESOLUTION, metadata=metadata)
    plt.close(figure)
