"""Small models that learn several induction heads: the study names them, and copying stops without them."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from picollm.attention.labels import Thresholds
from picollm.attention.maps import from_arrays
from picollm.data.tokenizer import END_OF_TEXT, VOCAB_SIZE
from picollm.mechanisms.emergence import STATISTICS, trace_emergence
from picollm.mechanisms.mechanisms import induction_heads, score_mechanisms
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.mechanisms.repeats import second_copy, sequences
from picollm.model.muon import Muon
from picollm.model.transformer import ModelConfig, Transformer

pytestmark = pytest.mark.slow

WORDS, CONTEXT, WIDTH, HEADS, STEPS = 32, 61, 128, 8, 900
CPU = torch.device("cpu")


def rows(n, generator, separator=END_OF_TEXT):
    """Repeats 3 to 30 words, [n, CONTEXT]: the next word occurred before, at a distance that no position reveals."""
    copies = (generator.permutation(WORDS)[: generator.integers(3, 31)] for _ in range(n))
    return np.stack([[separator, *np.resize(copy, CONTEXT - 1)] for copy in copies])


def model_of(vocab_size):
    return Transformer(ModelConfig(vocab_size, CONTEXT, WIDTH, 2, HEADS, WIDTH, 0.0, True, 1e4, 128))


def trained(seed):
    """Trains a model of 33 tokens to copy, with any heads; returns the snapshots {step: model}."""
    torch.manual_seed(seed)
    model, generator, kept = model_of(WORDS + 1), np.random.default_rng(seed), {}
    hidden = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not other for other in hidden)]
    optimizers = [Muon(hidden, lr=0.02, weight_decay=0.0), torch.optim.AdamW(others, lr=3e-3)]
    for step in range(STEPS + 1):
        if step in (0, 50, STEPS):
            kept[step] = deepcopy(model)
        ids = torch.from_numpy(rows(32, generator, separator=WORDS))
        logits = model.hidden(ids[:, :-1]) @ model.head.weight[: WORDS + 1].T
        F.cross_entropy(logits.transpose(1, 2), ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {step: in_full(snapshot) for step, snapshot in kept.items()}


def in_full(small):
    """Returns the same model with the tokenizer's vocabulary, and zero for the other embeddings."""
    model = model_of(VOCAB_SIZE).eval()
    ids = [*range(WORDS), END_OF_TEXT]
    state, own = model.state_dict(), small.state_dict()
    for name, value in own.items():
        if name in ("embedding.weight", "head.weight"):
            state[name].zero_()
            state[name][ids] = value[: WORDS + 1]
        else:
            state[name].copy_(value)
    return model


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.exhaustive), 2])
def snapshots(request):
    return trained(request.param)


@pytest.fixture(scope="module")
def subject(snapshots):
    text = rows(400, np.random.default_rng(1)).astype(np.uint16)
    cfg = {"windows": 32, "mean_windows": 100, "null_models": 3, "seed": 1}
    return ModelAndText(snapshots[STEPS], text[:300], text[300:], cfg, CPU)


@pytest.fixture(scope="module")
def found(subject):
    return score_mechanisms(subject)


def test_the_study_names_the_induction_heads(found):
    named = induction_heads(found)
    assert len(named) >= 2 and all(name.startswith("L1") for name in named), "they read what layer 0 has written"
    assert found["best"]["induction"]["head"] in named and found["best"]["induction"]["low"] > 0.8
    assert found["copies"]["gain"]["low"] > 2
    assert next(row for row in found["context"]["curve"] if row["tokens"] == 1)["low"] > 1, "one token tells little"
    strong = [head["name"] for head in found["heads"] if head["scores"]["induction"]["25"]["value"] > 0.9]
    assert set(strong) <= set(named), "a head that attends where the next token stood and copies it is one"


def test_no_induction_head_is_needed_alone_but_all_are_together(found):
    alone = [head["second_copy_harm"]["value"] for head in found["heads"] if head["induction_head"]]
    together = found["together"]
    assert together["heads"] == len(alone) and together["low"] > max(alone) and together["low"] > 1
    assert together["p"] < 0.1 and together["delta"] > 2 * together["random_median"], "few other sets cost as much"


def copied(model, ids):
    """Share of the second copy's tokens that the model ranks first."""
    query = second_copy(ids.shape[1] // 2)
    return (model(ids)[:, query].argmax(-1) == ids[:, query + 1]).double().mean().item()


@torch.no_grad()
def test_ablating_the_induction_heads_ends_the_copying(subject, found):
    ids = torch.from_numpy(sequences(subject.counts, 25, seed=9)[:32])
    removed = deepcopy(subject.model)
    for name in induction_heads(found):
        h, width = int(name[3:]), WIDTH // HEADS
        removed.blocks[1].attention.out.weight[:, h * width : (h + 1) * width] = 0
    assert copied(subject.model, ids) > 0.8 and copied(removed, ids) < 0.2


def test_the_induction_heads_emerged_in_training(subject, snapshots, found):
    ids = [list(row) for row in rows(12, np.random.default_rng(2))]
    maps = [subject.model.attention_maps(torch.tensor([sequence]))[0][0].numpy() for sequence in ids]
    threshold = dict.fromkeys(STATISTICS, 0.3)
    categories = [from_arrays(maps, ids, category="repeats")]
    over_time = trace_emergence(
        subject, snapshots.items(), categories, threshold, Thresholds(0.25, 0.15, 0.8, 0.1), window=4
    )
    assert [row["step"] for row in over_time["snapshots"]] == [0, 50, STEPS]
    for name in induction_heads(found):
        head = subject.names.index(name)
        assert over_time["onset"]["induction"][head] in (50, STEPS)
        scores = [row["heads"]["induction"][head] for row in over_time["snapshots"]]
        assert scores[0] < 0.05 and scores[-1] > 0.3
    losses = [row["loss"] for row in over_time["snapshots"]]
    assert losses[-1] < losses[0] - 1
