"""Models of other families, with random weights: maps, losses and replaced heads equal those of transformers and of
TransformerLens."""

import numpy as np
import pytest
import torch
from families import theirs

from picollm.attention.controls import sharpen, untrained_models
from picollm.mechanisms import repeats
from picollm.mechanisms.intervention import baseline, each_head, each_set, mean_outputs
from picollm.mechanisms.readout import divisor, linear_part
from picollm.model.foreign import FAMILIES, ForeignModel

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(3, 300, (3, 12)))


@pytest.mark.heavy
@pytest.mark.parametrize("family", list(FAMILIES))
def test_maps_and_losses_are_their_own(family, ids):
    model = theirs(family)
    found = ForeignModel(model)
    with torch.no_grad():
        expected = model(ids, output_attentions=True)
    maps, x = found.attention_maps(ids)
    assert maps.shape == (3, 2, 4, 12, 12)
    assert torch.allclose(maps, torch.stack(expected.attentions, 1), rtol=0, atol=1e-6)
    assert torch.triu(maps, 1).abs().max() == 0 and (maps.sum(-1) - 1).abs().max() < 1e-5
    nats = -expected.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(baseline(found, ids), nats, rtol=0, atol=1e-5)
    for logits in (found.logits(x), found(ids)):
        assert torch.allclose(logits, expected.logits, rtol=0, atol=1e-5)
    assert found.config.n_layers == 2 and found.config.n_heads == 4 and found.config.context == 64


def test_maps_run_the_model_once_for_sentences_of_every_length(ids):
    found, calls = ForeignModel(theirs("gpt2")), []
    found.layers[1].layer.register_forward_pre_hook(lambda module, given: calls.append(given[0].shape[1]))
    for length in (12, 5, 12, 7):
        found.attention_maps(ids[:1, :length])
    assert calls == [12, 5, 12, 7]


def by_hand(family, ids, heads, means):
    """Returns the nats of transformers' model, with a plain hook on the heads' columns before the output projection."""
    model = theirs(family)
    width = means.shape[-1]
    layers = model.get_submodule(FAMILIES[family].layers)
    for layer, head in heads:

        def rewrite(module, given, layer=layer, head=head):
            z = given[0].clone()
            z[..., head * width : (head + 1) * width] = means[layer, head]
            return (z, *given[1:])

        layers[layer].get_submodule(FAMILIES[family].out).register_forward_pre_hook(rewrite)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_heads_are_replaced_as_by_a_hook_written_by_hand(family, ids):
    found = ForeignModel(theirs(family))
    means = mean_outputs(found, [ids[:1], ids[1:]])
    whole, each = baseline(found, ids), each_head(found, ids, "mean", means)
    for h, (layer, head) in enumerate(np.ndindex(2, 4)):
        assert torch.allclose(each[h], by_hand(family, ids, [(layer, head)], means), rtol=0, atol=1e-5)
    assert (each - whole).abs().amax((1, 2)).min() > 1e-3, "each head does something"
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    (several,) = each_set(found, ids, [mask], means)
    assert torch.allclose(several, by_hand(family, ids, [(0, 1), (0, 3), (1, 0)], means), rtol=0, atol=1e-5)
    nothing = each_head(found, ids, "zero", means)
    assert torch.allclose(nothing[5], by_hand(family, ids, [(1, 1)], torch.zeros_like(means)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_copying_is_what_a_head_alone_writes_through_the_last_norm(family):
    """Passes each head's output alone through the model's projection and norm, which keeps the order of the logits."""
    found, L = ForeignModel(theirs(family)), 6
    generator = np.random.default_rng(3)
    copies = np.stack([generator.permutation(np.arange(3, 300))[:L] for _ in range(4)])
    ids = torch.from_numpy(np.concatenate([np.ones((4, 1), int), copies, copies], 1))
    share = repeats.copying(found, ids.numpy(), CPU)
    x, calls = found.start(ids)
    bias = getattr(found.norm, "bias", None)
    for layer, block in enumerate(found.layers):
        z = block.outputs(x, calls)
        for head in range(4):
            alone = torch.zeros_like(z)
            alone[:, head] = z[:, head]
            nothing = block.out(torch.zeros_like(z).transpose(1, 2).flatten(2))
            written = block.out(alone.transpose(1, 2).flatten(2)) - nothing  # without its bias
            normed = found.norm(1e3 * written)
            logits = found.head(normed if bias is None else normed - bias).detach()
            for s in range(4):
                wins = []
                for t in range(L + 1, 2 * L):
                    others = [i for i in copies[s] if i not in (copies[s][t - L], copies[s][t - L - 1])]
                    wins += [float(logits[s, t, copies[s][t - L]] > logits[s, t, i]) for i in others]
                assert share[s, 4 * layer + head] == pytest.approx(np.mean(wins), abs=1e-9)
        x = block(x, calls)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_last_norm_is_a_linear_map_over_one_number(family):
    norm = ForeignModel(theirs(family)).norm
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        found = linear_part(norm, x) / divisor(norm, x)[:, None]
        assert torch.allclose(found + getattr(norm, "bias", 0), norm(x), atol=1e-5)


LENS = {
    "gpt2": ("gpt2", dict(normalization_type="LN", positional_embedding_type="standard", act_fn="gelu_new")),
    "gpt_neox": ("neox", dict(normalization_type="LN", positional_embedding_type="rotary", act_fn="gelu",
                              rotary_dim=2, parallel_attn_mlp=True)),
    "llama": ("llama", dict(normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu",
                            rotary_dim=8, rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True,
                            n_key_value_heads=2)),
    "mistral": ("mistral", dict(normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu",
                                rotary_dim=8, rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True,
                                n_key_value_heads=2)),
    "qwen2": ("qwen2", dict(normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu",
                            rotary_dim=8, rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True,
                            n_key_value_heads=2)),
}  # fmt: skip


@pytest.mark.parametrize("family", list(LENS))
def test_transformer_lens_computes_the_same(family, ids):
    """Converts the same random weights with TransformerLens, into its own layers."""
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained import weight_conversions

    model = theirs(family)
    name, more = LENS[family]
    cfg = lens.HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_vocab=300, eps=epsilon_of(model.config),
        d_mlp=4 * 32 if family == "gpt2" else 64, device="cpu", dtype=torch.float32, **more,
    )  # fmt: skip
    hooked = lens.HookedTransformer(cfg)
    state = getattr(weight_conversions, f"convert_{name}_weights")(model, cfg)
    hooked.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    with torch.no_grad():
        logits, cache = hooked.run_with_cache(ids)
    maps, x = ForeignModel(model).attention_maps(ids)
    assert torch.allclose(torch.stack([cache["pattern", layer] for layer in range(2)], 1), maps, rtol=0, atol=1e-5)
    assert torch.allclose(logits, ForeignModel(model).logits(x), rtol=0, atol=1e-4)


def epsilon_of(config):
    names = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
    return next(getattr(config, name) for name in names if hasattr(config, name))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_are_scaled_layer_by_layer(family, ids):
    found, factor = ForeignModel(theirs(family)), 2.5
    before = found.attention_maps(ids)[0][:, 0].double()
    found.scale_logits(0, factor)
    after = found.attention_maps(ids)[0][:, 0].double()
    expected = (before.log() * factor).softmax(-1)
    assert torch.allclose(after, expected, atol=1e-5)


def test_means_are_over_all_positions(ids):
    found = ForeignModel(theirs("llama"))
    seen = []
    for block in found.layers:
        block.out.register_forward_pre_hook(lambda module, given: seen.append(given[0].unflatten(-1, (4, -1))))
    found(ids)
    expected = torch.stack([z.mean((0, 1)) for z in seen])
    for block in found.layers:
        block.out._forward_pre_hooks.clear()
    assert torch.allclose(mean_outputs(found, [ids[:1], ids[1:]]), expected, atol=1e-6)


def test_untrained_models_are_other_models_and_can_be_as_sharp(ids):
    found = ForeignModel(theirs("gpt_neox"))
    first, second = untrained_models(found, models=2, seed=1)
    assert not torch.equal(baseline(first, ids), baseline(second, ids))
    sentences = [row.tolist() for row in ids]
    flat = first.attention_maps(ids)[0]
    sharp = sharpen(first, [0.4, 0.4], sentences, CPU).attention_maps(ids)[0]
    assert sharp[:, :, :, 5:].max() > 2 * flat[:, :, :, 5:].max()
