"""Heads analysed outside of the pipeline: of a model and sentences, or of attention maps of one's own."""

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


def open_any(name: str, revision: str | None = None) -> tuple[Examined, Tokenizer | None]:
    """A folder that this project writes or reads, or any decoder of transformers by folder or name, and its tokenizer.

    Raises PicollmError for what can't be examined.
    """
    folder = Path(name)
    if not is_foreign_folder(folder):
        return load_folder(folder), None
    folder = folder_of(name, revision)
    tokenizer, model = of_folder(folder), load_foreign_model(folder)
    if model.config.vocab_size < max(tokenizer.size, tokenizer.start + 1):
        raise PicollmError(
            f"{name}: its tokenizer has {tokenizer.size:,} ids, the model's vocabulary {model.config.vocab_size:,}: "
            "they don't belong together"
        )
    return model, tokenizer


def causes_of(
    model: Examined, tokenizer: Tokenizer | None, folder: Path, device: torch.device, *, ablate: bool
) -> list[str]:
    """Writes mechanisms.csv, and with `ablate` ablation.csv of the sentences in folder/attention; lines to be read."""
    found = causes.induction(model, (tokenizer or gpt2()).start, device)
    write_csv(folder / "mechanisms.csv", found[0], found)
    named = [row["name"] for row in found if row["induction_head"]]
    told = [f"Induction heads, by score and copying: {', '.join(named) or 'none'}."]
    if not ablate:
        return told
    ids = [sequence for path in sorted((folder / "attention").glob("*.npz")) for sequence in load_attention(path).ids]
    lost = causes.ablated(model, ids, device)
    write_csv(folder / "ablation.csv", lost[0], lost)
    top, needed = max(lost, key=lambda row: row["delta"]), sum(row["q"] < SIGNIFICANT for row in lost)
    return [
        *told,
        f"Ablation: without {top['name']} the sentences lose {top['delta']:.3f} nats a token, the most of all; "
        f"{needed} of the heads matter alone.",
    ]


def analyse_maps(
    categories: Sequence[CategoryMaps],
    *,
    heads: Mapping,
    clusters: Mapping,
    model: Examined | None = None,
    device: torch.device = CPU,
) -> tuple[HeadsReport, ClustersReport, dict[str, NDArray]]:
    """The contents of heads.json, clusters.json and clusters.npz; `heads` and `clusters` are the config's sections.

    The maps may be of anything that attends (`picollm.attention.maps.from_arrays`); those of a `model` are also held
    against untrained ones of its shape.
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
    """Writes attention/CATEGORY.npz, heads.json, heads.csv, clusters.json and clusters.npz into the folder, and returns
    what `analyse_maps` does, which takes the `sections`."""
    found = any_sentences(sentences, style)
    paths = {name: folder / "attention" / f"{name}.npz" for name in found}
    extract_attention(model, found, paths, device, tokenizer)
    maps = load_categories(list(paths.values()))
    heads_report, clusters_report, arrays = analyse_maps(maps, model=model, device=device, **sections)
    write_json(folder / "heads.json", heads_report)
    write_text(folder / "heads.csv", heads_csv(heads_report))
    write_json(folder / "clusters.json", clusters_report)
    write_arrays(folder / "clusters.npz", arrays)
    return heads_report, clusters_report, arrays
