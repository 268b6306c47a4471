"""The full study of causal effects of heads: hours of forward passes, in parts that an interrupted run does not repeat.

Each part is a JSON file in the study's folder, with a key of everything it depends on; a part with the right key is
read back instead of computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm.attention.maps import CategoryMaps
from picollm.files import read_json, write_json
from picollm.mechanisms.ablation import (
    RANDOM_SETS,
    Ablated,
    GroupEffect,
    agreement,
    effects,
    group_effect,
    set_loss,
    summary,
)
from picollm.mechanisms.context import lengths, truncated_nats
from picollm.mechanisms.emergence import CONTEXTS
from picollm.mechanisms.intervention import BATCH_TOKENS, KINDS, OF_OUTPUTS, baseline, each_head
from picollm.mechanisms.model_and_text import ModelAndText, spread
from picollm.mechanisms.probes import PairEffects, head_effects
from picollm.mechanisms.redundancy import Interactions, interactions
from picollm.mechanisms.templates import pairs
from picollm.model.foreign import Examined, ForeignModel
from picollm.progress import progress
from picollm.stats import SIGNIFICANT, Effect, false_discovery_rate, number_or_none, per_head

if TYPE_CHECKING:
    from picollm.attention.clusters import ClustersReport
    from picollm.attention.heads import HeadsReport

T = TypeVar("T")
FORMAT = 3
CONTEXT_WINDOWS = 200  # for each head by context: with 32 no head of the default had q < .05
GROUP_WINDOWS = 16  # validation windows on which whole classes and clusters, and their random rivals, are ablated
SETS_A_GROUP = 20  # other sets per existing group: with this many, a single group can have q < .05


class Group(GroupEffect):
    group: str


class TestedGroup(Group):
    q: float | None


class CategoryHeads(TypedDict):
    sentences: int
    heads: list[Effect]


class HeadsByContext(TypedDict):
    windows: int
    tokens: dict[str, list[Effect]]


class Study(TypedDict):
    """Contents of study.json."""

    format: int
    classes: dict[str, str]
    loss: float
    tokens: int
    kinds: dict[str, Ablated]
    rank_correlation_with_mean: dict[str, float | None]
    group_tokens: int
    random_sets: int
    groups: list[TestedGroup]
    categories: dict[str, CategoryHeads]
    pairs: dict[str, PairEffects | None]
    interactions: Interactions
    context: HeadsByContext


def full_study(
    s: ModelAndText,
    categories: Sequence[CategoryMaps],
    heads: HeadsReport,
    clusters: ClustersReport,
    folder: str | Path,
    *,
    code: str,
) -> Study:
    """Returns the contents of study.json; `heads` and `clusters` are those of heads.json and clusters.json.

    It covers every kind of ablation on the validation windows, whole classes and clusters, categories of sentences,
    each kind of minimal pair, interactions of pairs of heads, and effects by length of context. `code` identifies the
    code that parts of an earlier run must come from.
    """
    groups = groups_of(s, heads, clusters)
    members = {name: mask.tolist() for name, mask in groups.items()}
    key = key_of(s, [code, members, [category.ids for category in categories]])

    def part(name: str, make: Callable[[], T]) -> T:
        path = Path(folder) / "parts" / f"{name.replace(' ', '-')}.json"
        if path.exists() and (stored := read_json(path))["key"] == key:
            return stored["value"]
        value = make()
        write_json(path, {"key": key, "value": value})
        return value

    known = OF_OUTPUTS if isinstance(s.model, ForeignModel) else KINDS
    kinds = {kind: part(kind, partial(ablated, s, kind)) for kind in known}
    few, sets = spread(s.validation, GROUP_WINDOWS), max(RANDOM_SETS, SETS_A_GROUP * len(groups))

    def group(name: str) -> GroupEffect:
        def loss_without(mask: NDArray) -> NDArray:
            return set_loss(s.model, few, mask, s.means, s.device)

        return group_effect(loss_without, groups[name], seed=s.cfg["seed"], sets=sets)

    shared: list[Group] = [
        {"group": name, **part(name, partial(group, name))}
        for name in progress(groups, desc="groups of heads", unit=" groups")
    ]
    return {
        "format": FORMAT,
        "classes": dict(zip(s.names, (head["label"] for head in heads["heads"]), strict=True)),
        "loss": kinds["mean"]["loss"],
        "tokens": int(s.windows[:, 1:].size),
        "kinds": kinds,
        "rank_correlation_with_mean": agreement(kinds),
        "group_tokens": int(few[:, 1:].size),
        "random_sets": sets,
        "groups": jointly(shared),
        "categories": {
            c.category: part(f"category {c.category}", partial(by_category, s, c))
            for c in progress(categories, desc="categories", unit=" categories")
        },
        "pairs": {kind: part(f"pairs {kind}", partial(head_effects, s, kind)) for kind in pairs()},
        "interactions": part("interactions", partial(interactions, s, range(len(s.names)))),
        "context": part("context", partial(by_context, s)),
    }


def by_context(s: ModelAndText) -> HeadsByContext:
    """Effect of each head on targets when only the last tokens before them are read, and when all are."""
    windows = spread(s.validation, CONTEXT_WINDOWS)
    kept = [k for k in CONTEXTS if k in lengths(windows.shape[1] - 1)]

    def lost(model: Examined, ids: Tensor, scored: Tensor) -> Tensor:
        return each_head(model, ids, "mean", s.means, scored) - baseline(model, ids, scored)

    nats = truncated_nats(s.model, windows, [*kept, None], seed=s.cfg["seed"], device=s.device, losses=lost)
    return {
        "windows": len(windows),
        "tokens": {
            "all" if k is None else str(k): per_head(rise_HW, s.names, seed=s.cfg["seed"])
            for k, rise_HW in nats.items()
        },
    }


def jointly(rows: Sequence[Group]) -> list[TestedGroup]:
    """Adds q to the rows, the false discovery rate over the testable groups: those with enough other sets that an
    effect of one group alone could have q < SIGNIFICANT. The others get None."""
    testable = np.array([row["least_p"] * len(rows) < SIGNIFICANT for row in rows])
    q = false_discovery_rate(np.where(testable, [row["p"] for row in rows], np.nan))
    return [{**row, "q": number_or_none(value)} for row, value in zip(rows, q, strict=True)]


def key_of(s: ModelAndText, rest: object) -> str:
    """Hash of the model, the windows, the settings and everything else the parts read."""
    digest = hashlib.sha256()
    for name, tensor in s.model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for rows in (s.windows, s.mean_windows, spread(s.validation, GROUP_WINDOWS)):
        digest.update(np.ascontiguousarray(rows).tobytes())
    digest.update(json.dumps([FORMAT, s.model.config.to_dict(), dict(s.cfg), rest], sort_keys=True).encode())
    return digest.hexdigest()


def ablated(s: ModelAndText, kind: str) -> Ablated:
    whole_WT, rise_HWT = effects(s.model, s.windows, kind, s.means, s.device)
    return summary(whole_WT.mean(-1), rise_HWT.mean(-1), s.names, seed=s.cfg["seed"])


def groups_of(s: ModelAndText, heads: HeadsReport, clusters: ClustersReport) -> dict[str, NDArray[np.bool_]]:
    """Returns masks [L, H] of the classes and clusters that have more than one head, but not all."""
    shape = (s.model.config.n_layers, s.model.config.n_heads)
    labels = [head["label"] for head in heads["heads"]]
    members = [head["cluster"] for head in clusters["heads"]]
    masks = {f"class {name}": np.array(labels) == name for name in dict.fromkeys(labels)}
    if clusters["structure"]["found"]:
        masks |= {f"cluster {number}": np.array(members) == number for number in sorted(set(members))}
    return {name: mask.reshape(shape) for name, mask in masks.items() if 1 < mask.sum() < mask.size}


def by_category(s: ModelAndText, category: CategoryMaps) -> CategoryHeads:
    """Effect of mean-ablating each head on the category's sentences; intervals are over sentences, so that a single
    sentence gives no result for any head."""
    if len(category.ids) < 2:
        return {"sentences": len(category.ids), "heads": []}
    longest = max(map(len, category.ids))
    ids_ST = np.full((len(category.ids), longest), s.tokenizer.start)  # right padding does not affect the ids before it
    there_ST = np.zeros((len(category.ids), longest - 1), dtype=bool)
    for n, ids in enumerate(category.ids):
        ids_ST[n, : len(ids)], there_ST[n, : len(ids) - 1] = ids, True
    more, at_once = [], max(1, BATCH_TOKENS // longest)
    for start in range(0, len(ids_ST), at_once):
        ids = torch.from_numpy(ids_ST[start : start + at_once]).to(s.device)
        there = torch.from_numpy(there_ST[start : start + at_once]).to(s.device)
        lost = (each_head(s.model, ids, "mean", s.means, there) - baseline(s.model, ids, there)).double()
        more.append((lost.sum(-1) / there.sum(-1)).cpu().numpy())
    return {
        "sentences": len(ids_ST),
        "heads": per_head(np.concatenate(more, axis=1), s.names, seed=s.cfg["seed"]),
    }
