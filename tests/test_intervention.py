"""Replaced heads compared with a full run of the model, and with known facts about handwritten models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from circuits import induction_circuit
from scipy.stats import permutation_test

from picollm.mechanisms.ablation import effects, group_effect, other_sets, set_loss, summary
from picollm.mechanisms.intervention import (
    KINDS,
    baseline,
    batches,
    each_head,
    each_set,
    mean_outputs,
    outputs,
    without,
)
from picollm.model.transformer import ModelConfig, Transformer
from picollm.stats import false_discovery_rate, resampled, sign_flip_p

CPU = torch.device("cpu")
L, H = 3, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(300, 32, 28, L, H, 40, 0.1, True, 1e4, 64)).eval()
    with torch.no_grad():  # sharp heads that matter
        for block in model.blocks:
            block.attention.qkv.weight.mul_(8)
            block.attention.out.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 300, (5, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mean(model, ids):
    return mean_outputs(model, [ids[:3], ids[3:]])


def naive(model, ids, layer, head, kind, mean):
    """Runs the model from the start, with a hook that rewrites the head's part of the input of W_O."""
    K = mean.shape[-1]
    part = slice(head * K, (head + 1) * K)
    kept, patterns = {}, model.attention_maps(ids)[0]

    def rewrite(module, inputs):
        (z,) = (inputs[0].clone(),)
        _, _, v, _ = outputs(model.blocks[layer], kept["residual"], model.start(ids)[1:])
        T = z.shape[1]
        if kind == "mean":
            z[..., part] = mean[layer, head]
        elif kind == "zero":
            z[..., part] = 0
        else:
            weights = patterns[:, layer, head]
            if kind == "uniform":
                weights = torch.ones_like(weights).tril() / torch.arange(1, T + 1)[:, None]
            else:
                weights = weights.clone()
                weights[:, 1:, 0] = 0
                weights = weights / weights.sum(-1, keepdim=True)
            z[..., part] = weights @ v[:, head]
        return (z,)

    block = model.blocks[layer]
    hooks = [
        block.register_forward_pre_hook(lambda module, inputs: kept.update(residual=inputs[0])),
        block.attention.out.register_forward_pre_hook(rewrite),
    ]
    try:
        logits = model(ids)[:, :-1]
    finally:
        for hook in hooks:
            hook.remove()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def test_only_what_is_scored_is_computed(model, ids, mean):
    scored = torch.rand(5, 23, generator=torch.Generator().manual_seed(2)) < 0.3
    for every, some in (
        (baseline(model, ids), baseline(model, ids, scored)),
        (each_head(model, ids, "mean", mean), each_head(model, ids, "mean", mean, scored)),
    ):
        torch.testing.assert_close(some, every * scored, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prefixes_give_what_whole_forwards_give(model, ids, mean, kind):
    found = each_head(model, ids, kind, mean)
    assert found.shape == (L * H, 5, 23)
    with torch.no_grad():
        for layer in range(L):
            for head in range(H):
                again = naive(model, ids, layer, head, kind, mean)
                torch.testing.assert_close(found[layer * H + head], again, rtol=1e-6, atol=1e-6)
                assert (again - baseline(model, ids)).abs().max() > 1e-4, "the head matters"


def test_one_head_of_a_set_is_the_head_alone(model, ids, mean):
    found = each_head(model, ids, "mean", mean)
    for h in range(L * H):
        mask = torch.zeros(L * H, dtype=torch.bool)
        mask[h] = True
        assert torch.equal(without(model, ids, mask.view(L, H), mean), found[h])


def test_all_heads_at_zero_are_a_model_without_attention(model, ids):
    every = torch.ones(L, H, dtype=torch.bool)
    found = without(model, ids, every, torch.zeros(L, H, 14))
    with torch.no_grad():
        x = model.embedding(ids[:, :-1])
        for block in model.blocks:
            x = x + block.mlp(block.norm_mlp(x))
        logits = model.logits(model.norm(x))
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(5, -1)
    assert (found - expected).abs().max() < 1e-5


def test_a_head_whose_output_is_constant_is_not_missed(ids):
    torch.manual_seed(2)
    model = Transformer(ModelConfig(300, 32, 28, L, H, 40, 0.0, True, 1e4, 64)).eval()
    with torch.no_grad():  # values that don't depend on the token: a bias alone, seen through W_v
        model.blocks[1].norm_attention.weight.zero_()
        model.blocks[1].norm_attention.bias.normal_()
        model.blocks[1].attention.out.weight.mul_(50)
    mean = mean_outputs(model, [ids])
    lost = (each_head(model, ids, "mean", mean) - baseline(model, ids)).abs().amax((1, 2))
    assert lost[2] < 1e-4 and lost[3] < 1e-4 and (lost[[0, 1, 4, 5]] > 1e-4).all()
    zero = (each_head(model, ids, "zero", mean) - baseline(model, ids)).abs().amax((1, 2))
    assert (zero[2:4] > 1e-3).all(), "what it always says is missed all the same"


def test_means_are_over_all_positions(model, ids):
    z = torch.stack([outputs(block, x, model.start(ids)[1:])[3] for block, x in residuals(model, ids)])
    assert torch.allclose(mean_outputs(model, [ids[:2], ids[2:]]), z.mean((1, 3)), atol=1e-6)
    again = mean_outputs(model, batches(ids.numpy(), CPU))
    assert torch.allclose(again, z.mean((1, 3)), atol=1e-6)


def residuals(model, ids):
    x, *rotary = model.start(ids)
    with torch.no_grad():
        for block in model.blocks:
            yield block, x
            x = block(x, *rotary)


def test_effects_of_windows(model, ids, mean):
    whole_WT, rise_HWT = effects(model, ids.numpy(), "mean", mean, CPU)
    assert whole_WT == pytest.approx(baseline(model, ids).numpy(), abs=1e-6)
    expected = (each_head(model, ids, "mean", mean) - baseline(model, ids)).numpy()
    assert rise_HWT == pytest.approx(expected, abs=1e-6)


def test_sets_of_heads_in_one_go_are_those_alone(model, ids, mean):
    scored = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
    scored[:, 1::2] = True
    shape = mean.shape[:2]
    masks = [torch.zeros(shape, dtype=torch.bool)]
    for chosen in ([(0, 1)], [(0, 0), (1, 1)], [(1, 0), (1, 1)]):
        masks.append(torch.zeros(shape, dtype=torch.bool))
        for place in chosen:
            masks[-1][place] = True
    found = list(each_set(model, ids, masks, mean, scored))
    assert torch.allclose(found[0], baseline(model, ids) * scored, atol=1e-6)
    for mask, nats in zip(masks, found, strict=True):
        assert torch.allclose(nats, without(model, ids, mask, mean) * scored, atol=1e-6)
    alone = each_head(model, ids, "mean", mean)[1]
    assert torch.allclose(without(model, ids, masks[1], mean), alone, atol=1e-5)


def test_the_circuit_without_its_heads_copies_no_more():
    model = induction_circuit()
    generator = np.random.default_rng(0)
    copies = np.stack([generator.permutation(31)[:25] for _ in range(16)])
    ids_WT = np.concatenate([np.full((16, 1), 31), copies, copies], 1)
    whole_WT, rise_HWT = effects(model, ids_WT, "mean", mean_outputs(model, batches(ids_WT, CPU)), CPU)
    report = summary(whole_WT.mean(-1), rise_HWT.mean(-1), ["L0H0", "L0H1", "L1H0", "L1H1"], seed=1)
    found = {head["name"]: head for head in report["heads"]}
    for name in ("L0H0", "L1H0"):
        assert found[name]["delta"] > 1 and found[name]["low"] > 1 and found[name]["q"] < 0.01
        assert found[name]["perplexity"] == pytest.approx(np.expm1(found[name]["delta"]), rel=1e-4)
    for name in ("L0H1", "L1H1"):
        assert found[name]["delta"] == found[name]["share"] == 0 and found[name]["q"] == 1
    assert sum(head["share"] for head in found.values()) == pytest.approx(1, abs=1e-5)


def test_other_sets_are_distinct_of_the_same_profile_and_all_of_them_where_they_are_few():
    mask = np.array([[True, False], [False, False], [False, True]])
    every = other_sets(mask, sets=50, seed=0)
    assert len({other.tobytes() for other in every}) == len(every) == 2 * 1 * 2 - 1
    assert all((other.sum(1) == mask.sum(1)).all() and not np.array_equal(other, mask) for other in every)
    assert other_sets(np.ones((3, 2), bool), sets=50, seed=0) == []
    wide = np.arange(3 * 8).reshape(3, 8) % 3 == 0
    drawn = other_sets(wide, sets=40, seed=1)
    assert len({other.tobytes() for other in drawn}) == len(drawn) == 40
    assert all((other.sum(1) == wide.sum(1)).all() and not np.array_equal(other, wide) for other in drawn)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, other_sets(wide, sets=40, seed=1), strict=True))


def test_groups_are_held_against_other_sets_of_their_profile(model, ids, mean):
    def loss_without(chosen):
        return set_loss(model, ids.numpy(), chosen, mean, CPU)

    mask = np.array([[True, False], [False, False], [False, True]])
    found = group_effect(loss_without, mask, seed=0, sets=20)
    whole = baseline(model, ids)
    more = without(model, ids, torch.from_numpy(mask), mean) - whole
    assert found["delta"] == pytest.approx(more.mean().item(), abs=1e-5) and found["heads"] == 2
    others = [
        (without(model, ids, torch.from_numpy(other), mean) - whole).mean().item()
        for other in other_sets(mask, sets=20, seed=0)
    ]
    assert found["sets"] == len(others) == 3 and found["least_p"] == 0.25
    assert found["random_median"] == pytest.approx(np.median(others), abs=1e-5)
    assert found["random_95"] == pytest.approx(np.quantile(others, 0.95), abs=1e-5)
    assert found["p"] == pytest.approx((1 + sum(other >= found["delta"] - 1e-5 for other in others)) / 4, abs=1e-6)
    every = group_effect(loss_without, np.ones((L, H), bool), seed=0, sets=20)
    assert every["p"] == every["least_p"] == 1 and every["random_95"] is None, "nothing to compare it with"


@pytest.mark.heavy
@pytest.mark.parametrize("windows", [12, 64])
def test_p_is_uniform_and_the_interval_covers_under_the_null(windows):
    generator = np.random.default_rng(3)
    drawn = generator.standard_normal((500, windows))
    p = sign_flip_p(drawn, seed=0)
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.02) and p.mean() == pytest.approx(0.5, abs=0.05)
    low, high = resampled(drawn + 1, seed=0)
    assert np.mean((low <= 1) & (high >= 1)) == pytest.approx(0.95, abs=0.015)


def test_p_of_few_windows_is_exact():
    drawn = np.random.default_rng(0).standard_normal((5, 10)) + 0.3
    for row, p in zip(drawn, sign_flip_p(drawn, seed=0), strict=True):
        scipy = permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(scipy.pvalue)
    one = np.vstack([np.ones((1, 12)), np.random.default_rng(1).standard_normal((55, 12))])
    assert false_discovery_rate(sign_flip_p(one, seed=0))[0] < 0.05, "a single head can be found among chance ones"
