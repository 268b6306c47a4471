"""The folder of figures and its manifest: file, caption, group, sha256; written last."""

from __future__ import annotations

import base64
from pathlib import Path

from matplotlib.figure import Figure

from picollm.files import atomic_path, read_json, write_json
from picollm.manifest import clear, describe, prove
from picollm.report.style import save

MIME = {".svg": "image/svg+xml", ".png": "image/png"}


class Gallery:
    """Collects figures beside the manifest, after removing those of an earlier run."""

    def __init__(self, manifest_path: Path) -> None:
        self.path, self.entries = manifest_path, []
        clear(self.path, *(f"*{suffix}" for suffix in MIME))

    def add(self, name: str, figure: Figure, caption: str, group: str = "") -> None:
        file = self.path.parent / name
        with atomic_path(file) as temporary:
            save(figure, temporary, file.suffix)
        self.entries.append({"caption": caption, "group": group, **describe(file)})

    def finish(self) -> None:
        write_json(self.path, {"format": 1, "figures": self.entries})


def embedded(manifest_path: str | Path) -> dict[str, dict]:
    """File name -> its entry and `uri`, the picture as a data: URI. Raises PicollmError where one is damaged."""
    figures = {}
    for entry in read_json(manifest_path)["figures"]:
        file = prove(manifest_path, entry, "draw_figures")
        data = base64.b64encode(file.read_bytes()).decode()
        figures[entry["file"]] = entry | {"uri": f"data:{MIME[file.suffix]};base64,{data}"}
    return figures
