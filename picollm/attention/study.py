"""The whole study of heads outside of the pipeline: of a model and sentences, or of maps of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray

from picollm.attention.census import table
from picollm.attention.classification import classify
from picollm.attention.extraction import extract
from picollm.attention.families import families_of, write_arrays
from picollm.attention.maps import CategoryMaps, load_categories
from picollm.attention.sentences import CATEGORIES
from picollm.data.files import write_json, write_text
from picollm.model.transformer import Transformer

CPU = torch.device("cpu")


def analyse(
    categories: Sequence[CategoryMaps],
    *,
    heads: Mapping,
    clusters: Mapping,
    model: Transformer | None = None,
    device: torch.device = CPU,
) -> tuple[dict, dict, dict[str, NDArray]]:
    """The contents of heads.json, clusters.json and clusters.npz; `heads` and `clusters` are the config's sections.

    The maps may be of anything that attends (`picollm.attention.maps.from_arrays`); those of a `model` are also held
    against untrained ones of its shape.
    """
    census = classify(categories, model, heads, device)
    return census, *families_of(categories, census["heads"], clusters)


def study(
    model: Transformer, sentences: str | Path, style: str, folder: Path, *, device: torch.device, **sections: Mapping
) -> tuple[dict, dict, dict[str, NDArray]]:
    """Writes attention/CATEGORY.npz, heads.json, heads.csv, clusters.json and clusters.npz into the folder, and returns
    what `analyse` does, which takes the `sections`."""
    paths = {name: folder / "attention" / f"{name}.npz" for name in CATEGORIES}
    extract(model, sentences, style, paths, device)
    census, families, arrays = analyse(load_categories(list(paths.values())), model=model, device=device, **sections)
    write_json(folder / "heads.json", census)
    write_text(folder / "heads.csv", table(census))
    write_json(folder / "clusters.json", families)
    write_arrays(folder / "clusters.npz", arrays)
    return census, families, arrays
