"""Writes the folder of figures and, last, its manifest: file, caption, group, sha256, and the data behind each."""

from __future__ import annotations

import base64
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from picollm.files import atomic_path, read_json, write_json, write_text
from picollm.manifest import clear, describe, verified
from picollm.report.style import save

MIME = {".svg": "image/svg+xml", ".png": "image/png"}


class Gallery:
    """Collects figures in the manifest's folder, after removing those of an earlier run."""

    def __init__(self, manifest_path: Path) -> None:
        self.path, self.entries = manifest_path, []
        clear(self.path, *(f"*{suffix}" for suffix in (*MIME, ".csv")))

    def add(self, name: str, figure: Figure, caption: str, group: str = "", data: pd.DataFrame | None = None) -> None:
        """Adds a figure. `data` is what it shows, written next to it as CSV."""
        file = self.path.parent / name
        with atomic_path(file) as temporary:
            save(figure, temporary, file.suffix)
        entry = {"caption": caption, "group": group, **describe(file)}
        if data is not None:
            table = file.with_suffix(".csv")
            write_text(table, data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
            entry["data"] = describe(table)
        self.entries.append(entry)

    def finish(self) -> None:
        write_json(self.path, {"format": 1, "figures": self.entries})


def embedded(manifest_path: str | Path) -> dict[str, dict]:
    """Returns {file name: entry}, with the picture as a data: URI, `uri`, and its data's, `csv`, or None.

    Raises PicollmError if a file is damaged.
    """
    figures = {}
    for entry in read_json(manifest_path)["figures"]:
        file = verified(manifest_path, entry, "draw_figures")
        figure = entry | {"uri": uri(file, MIME[file.suffix]), "csv": None}
        if "data" in entry:
            figure["csv"] = uri(verified(manifest_path, entry["data"], "draw_figures"), "text/csv")
        figures[entry["file"]] = figure
    return figures


def uri(file: Path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"
