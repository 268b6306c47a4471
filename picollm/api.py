"""The Python API: `import picollm; picollm.load_model(...)`. It is documented in docs/python.md, which a test runs.

Maps are NumPy arrays, tables are pandas DataFrames. Losses are in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from picollm.attention.analysis import open_any
from picollm.attention.extraction import attention_maps, check, tokenise
from picollm.attention.heads import classify_heads
from picollm.attention.maps import CategoryMaps, names_of
from picollm.attention.sentences import Sentence, parse
from picollm.data.tokenizers import Tokenizer
from picollm.errors import PicollmError
from picollm.mechanisms import causes
from picollm.model.foreign import Examined
from picollm.presets import preset
from picollm.stats import interval_columns

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Model:
    """A model with its tokenizer, on the CPU."""

    network: Examined
    tokenizer: Tokenizer

    @property
    def heads(self) -> list[str]:
        """The names of all heads, layer by layer: L0H0, L0H1, ..."""
        return names_of(self.network.config)


@dataclass(frozen=True)
class Maps:
    """Attention in one text: `tokens`, start included; `weights` float32 [layer, head, query, key], rows sum to 1."""

    tokens: list[str]
    weights: NDArray[np.float32]


def load_model(name: str) -> Model:
    """Loads a folder of this project or of transformers, or a hub name. Raises PicollmError if it can't be read."""
    network, tokenizer = open_any(str(name))
    return Model(network.to(device=CPU), tokenizer)


def maps(model: Model, text: str) -> Maps:
    """Computes the attention maps of a text. Raises PicollmError if the text is too long for the model or too short."""
    tokens = tokenise(Sentence(text), model.tokenizer)
    check(model.network, "text", [tokens])
    (weights,) = attention_maps(model.network, [tokens.ids], CPU)
    return Maps(tokens.strings, weights)


def label_heads(model: Model, texts: Sequence[str], *, null_models: int = 3) -> pd.DataFrame:
    """Returns one row per head: class, tag, stability, and each statistic of docs/heads.md with its 95 % interval.

    `texts`: at least 20 for meaningful intervals; they may have gold marks, `(words)_role`. `null_models`: number of
    untrained models of the same shape, and of sharpened ones, from which the thresholds are derived.
    """
    sentences = [tokenise(parsed(text, number), model.tokenizer) for number, text in enumerate(texts, 1)]
    if not sentences or null_models < 1:
        raise PicollmError("label_heads needs at least one text, and null_models of at least 1")
    check(model.network, "texts", sentences)
    category = CategoryMaps(
        "texts", "Texts", [t.text for t in sentences], [t.ids for t in sentences], [t.strings for t in sentences],
        [{role: list(span) for role, span in t.gold.items()} for t in sentences],
        list(attention_maps(model.network, [t.ids for t in sentences], CPU)),
    )  # fmt: skip
    report = classify_heads([category], model.network, preset("default")["heads"] | {"null_models": null_models}, CPU)
    return pd.DataFrame(
        [
            {name: head[name] for name in ("name", "layer", "head", "label", "tag", "stability")}
            | interval_columns(head["statistics"])
            for head in report["heads"]
        ]
    )


def parsed(text: str, number: int) -> Sentence:
    try:
        return parse(text)
    except PicollmError as error:
        raise PicollmError(f"text {number} {error}") from None


def induction(model: Model) -> pd.DataFrame:
    """Returns one row per head: scores on repeated random tokens (previous, duplicate, induction: 0 for uniform
    attention, 1 for all weight) and copying (.5 by chance), with 95 % intervals over sequences; induction_head."""
    return pd.DataFrame(causes.induction(model.network, model.tokenizer.start, CPU))


def ablate(model: Model, texts: Sequence[str]) -> pd.DataFrame:
    """Returns the texts' rise in loss with each head's output replaced by its mean over them: nats per token (`delta`),
    a 95 % interval over texts, p, and q over the heads. Needs at least two texts."""
    sentences = [tokenise(Sentence(text), model.tokenizer) for text in texts]
    check(model.network, "texts", sentences)
    return pd.DataFrame(causes.ablated(model.network, [tokens.ids for tokens in sentences], CPU))
