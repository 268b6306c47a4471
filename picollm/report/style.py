"""One look for all figures: colours that colour-blind readers tell apart (Okabe & Ito 2008), and bytes that repeat."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

LABEL_COLOURS = {
    "diagonal": "#D55E00",
    "local": "#E69F00",
    "token-specific": "#009E73",
    "global": "#56B4E9",
    "sink": "#999999",
    "mixed": "#CC79A7",
}
INK, MUTED, ACCENT, SECOND = "#1b1f24", "#6b7280", "#0072B2", "#D55E00"

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs everywhere
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "text.color": INK,
        "axes.labelcolor": INK,
        "svg.hashsalt": "picollm",
        "figure.constrained_layout.use": True,
    }
)


def save(figure: Figure, path: str | Path, suffix: str) -> None:
    """No date and no version inside: the same data give the same bytes. `suffix`: .svg or .png."""
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(path, format=suffix[1:], dpi=110, metadata=metadata)
    plt.close(figure)
