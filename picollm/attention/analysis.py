"""Head analysis outside the pipeline, from a model and sentences or from user-supplied attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray

from picollm.attention.clusters import ClustersReport, cluster_heads, write_arrays
from picollm.attention.extraction import extract_attention
from picollm.attention.heads import HeadsReport, classify_heads, heads_csv
from picollm.attention.maps import CategoryMaps, load_attention, load_categories
from picollm.attention.sentences import any_sentences
from picollm.data.tokenizers import Tokenizer, gpt2, of_folder
from picollm.errors import PicollmError
from picollm.files import write_csv, write_json, write_text
from picollm.mechanisms import causes
from picollm.model.folders import is_foreign_folder
from picollm.model.foreign import Examined
from picollm.model.foreign_folder import folder_of, load_foreign_model
from picollm.model.huggingface import load_folder
from picollm.stats import SIGNIFICANT

CPU = torch.device("cpu")


def open_any(name: str, revision: str | None = None) -> tuple[Examined, Tokenizer]:
    """Opens a folder this project can read, or any transformers decoder by folder or name, with its tokenizer.

    Raises PicollmError for a model that can't be examined.
    """
    folder = Path(name)
    if not is_foreign_folder(folder):
        return load_folder(folder), gpt2()
    folder = folder_of(name, revision)
    tokenizer, model = of_folder(folder), load_foreign_model(folder)
    if model.config.vocab_size < max(tokenizer.size, tokenizer.start + 1):
        raise PicollmError(
            f"{name}: its tokenizer has {tokenizer.size:,} ids, the model's vocabulary {model.config.vocab_size:,}: "
            "they don't belong together"
        )
    return model, tokenizer


def causes_of(model: Examined, tokenizer: Tokenizer, folder: Path, device: torch.device, *, ablate: bool) -> list[str]:
    """Writes mechanisms.csv and, with `ablate`, ablation.csv for folder/attention; returns summary lines to print."""
    rows = causes.induction(model, tokenizer.start, device)
    write_csv(folder / "mechanisms.csv", rows[0], rows)
    named = [row["name"] for row in rows if row["induction_head"]]
    lines = [f"Induction heads, by score and copying: {', '.join(named) or 'none'}."]
    if not ablate:
        return lines
    ids = [sequence for path in sorted((folder / "attention").glob("*.npz")) for sequence in load_attention(path).ids]
    effects = causes.ablated(model, ids, device)
    write_csv(folder / "ablation.csv", effects[0], effects)
    top, needed = max(effects, key=lambda row: row["delta"]), sum(row["q"] < SIGNIFICANT for row in effects)
    return [
        *lines,
        f"Ablation: removing {top['name']} costs the most, {top['delta']:.3f} nats per token; "
        f"{needed} of the heads matter individually.",
    ]


def analyse_maps(
    categories: Sequence[CategoryMaps],
    *,
    heads: Mapping,
    clusters: Mapping,
    model: Examined | None = None,
    device: torch.device = CPU,
) -> tuple[HeadsReport, ClustersReport, dict[str, NDArray]]:
    """Returns the contents of heads.json, clusters.json and clusters.npz; `heads` and `clusters` are config sections.

    The maps may come from anything that attends (`picollm.attention.maps.from_arrays`); if `model` is given, its heads
    are also compared with those of untrained models of the same shape.
    """
    heads_report = classify_heads(categories, model, heads, device)
    return heads_report, *cluster_heads(categories, heads_report["heads"], clusters)


def analyse_model(
    model: Examined,
    sentences: str | Path,
    style: str,
    folder: Path,
    *,
    device: torch.device,
    tokenizer: Tokenizer | None = None,
    **sections: Mapping,
) -> tuple[HeadsReport, ClustersReport, dict[str, NDArray]]:
    """Writes attention/CATEGORY.npz, heads.json, heads.csv, clusters.json and clusters.npz into the folder; returns the
    result of `analyse_maps`, to which `sections` are passed."""
    categories = any_sentences(sentences, style)
    paths = {name: folder / "attention" / f"{name}.npz" for name in categories}
    extract_attention(model, categories, paths, device, tokenizer)
    maps = load_categories(list(paths.values()))
    heads_report, clusters_report, arrays = analyse_maps(maps, model=model, device=device, **sections)
    write_json(folder / "heads.json", heads_report)
    write_text(folder / "heads.csv", heads_csv(heads_report))
    write_json(folder / "clusters.json", clusters_report)
    write_arrays(folder / "clusters.npz", arrays)
    return heads_report, clusters_report, arrays
