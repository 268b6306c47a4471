"""Work divided among any number of jobs gives the bytes of one job."""

import json

import numpy as np
import pytest
import torch

from picollm.cluster import resources
from picollm.mechanisms import ablation, intervention
from picollm.mechanisms.ablation import ablate_heads, part_of_effects
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.model.transformer import ModelConfig, Transformer
from picollm.presets import preset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("parts", [2, 3, 7])  # of four batches: more shares than batches leave some empty
def test_shares_of_the_ablation_give_the_bytes_of_one_job(monkeypatch, parts):
    monkeypatch.setattr(intervention, "BATCH_TOKENS", 3 * 13)
    monkeypatch.setattr(ablation, "BATCH_TOKENS", 3 * 13)
    torch.manual_seed(1)
    sizes = {"vocab_size": 60, "context": 12, "d_model": 12, "n_layers": 2, "n_heads": 2, "d_ff": 16}
    shape = ModelConfig(**sizes, dropout=0.0, tied=True, rope_theta=1e4, rope_cache=16)
    rows = np.random.default_rng(1).integers(0, 60, (40, 13)).astype(np.uint16)
    cfg = {"windows": 10, "mean_windows": 8, "seed": 1}
    examined = ModelAndText(Transformer(shape).eval(), rows[:30], rows[30:], cfg, torch.device("cpu"))
    shared = ablate_heads(examined, [part_of_effects(examined, k, parts) for k in range(parts)])
    assert json.dumps(shared) == json.dumps(ablate_heads(examined))


@pytest.mark.parametrize("name", ["smoke", "default", "wikitext-103"])
def test_every_rule_asks_for_what_the_configuration_needs(name):
    config = preset(name)
    size = resources.size_of(config)
    for rule in (*resources.BASE_MB, *resources.SHARE_OF):
        found = resources.resources(rule, config, size)
        first, second = (found["mem_mb"](None, attempt=attempt) for attempt in (1, 2))
        assert second == 2 * first >= 2 * resources.LEAST_MB and found["gpu"] == 0
        assert found["runtime"](None, attempt=3) == 3 * found["runtime"](None, attempt=1)


def test_what_grows_with_what():
    def asked(rule: str, **edits: dict) -> tuple[int, int]:
        config = {name: {**keys, **edits.get(name, {})} for name, keys in preset("default").items()}
        found = resources.resources(rule, config, resources.size_of(config))
        return found["mem_mb"](None, attempt=1), found["runtime"](None, attempt=1)

    memory, time = asked("pretrain")
    more_rows, longer = asked("pretrain", pretrain={"batch_rows": 64}), asked("pretrain", pretrain={"length": 1000})
    assert more_rows[0] > memory and longer == (memory, pytest.approx(2 * time, rel=0.1))
    assert asked("pretrain", pretrain={"batch_rows": 64, "accumulate": 4})[0] == memory, "parts, not rows"
    text = {"source": "wikitext-103"}
    small, large = asked("prepare_corpus"), asked("prepare_corpus", corpus=text)
    assert small[0] == large[0] and small[1] < large[1], "it streams"
    config = preset("default")
    config["compute"]["device"], config["pretrain"]["processes"] = "cuda", 4
    size = resources.size_of(config)
    gpus = {rule: resources.resources(rule, config, size)["gpu"] for rule in resources.BASE_MB}
    assert gpus["pretrain"] == 4 and gpus["ablate_heads"] == 1 and gpus["final_report"] == 0
    assert resources.threads_of("pretrain", config) == 4 * config["compute"]["threads"]
