"""Inputs of the compilers: the exported graph, its precisions, the rows that calibrate int8."""

import numpy as np
import pytest
import torch
from small_model import CONTEXT, LAYERS, MAX_BATCH, VOCAB, small_model

from picollm.engine.build import calibration
from picollm.engine.export import Float32Norm, export_program, half_precision

LAST, EVERY = np.array([CONTEXT - 1]), np.arange(CONTEXT)


@pytest.fixture(scope="module")
def model():
    return small_model()


def ids(batch):
    return np.random.default_rng(batch).integers(VOCAB, size=(batch, CONTEXT))


def eager(model, tokens, positions=LAST):
    with torch.no_grad():
        return model(torch.from_numpy(tokens))[:, positions].numpy()


def test_half_precision_keeps_layer_norm_in_float32(model):
    half = half_precision(model)
    norms = [module for module in half.modules() if isinstance(module, Float32Norm)]
    assert len(norms) == 2 * LAYERS + 1
    assert {norm.norm.weight.dtype for norm in norms} == {torch.float32}
    x = torch.randn(3, 28, dtype=torch.float16)
    assert norms[0](x).dtype == torch.float16
    assert half.head.weight is half.embedding.weight and half.head.weight.dtype == torch.float16
    with torch.no_grad():
        found = half(torch.from_numpy(ids(2)), last=True).float().numpy()
    np.testing.assert_allclose(found, eager(model, ids(2))[:, 0], atol=5e-3)


@pytest.mark.heavy
def test_the_exported_program_has_only_operators_that_tensorrt_knows(model):
    program = export_program(half_precision(model), "logits", max_batch=MAX_BATCH)
    used = {node.target.name().partition(".")[0] for node in program.graph.nodes if node.op == "call_function"
            and hasattr(node.target, "name")}  # fmt: skip
    known = (
        "embedding linear layer_norm scaled_dot_product_attention silu mul add sub neg cat split chunk unbind slice "
        "select index_select to "
        "view reshape transpose permute unsqueeze unflatten flatten sym_size _assert_tensor_metadata"
    )
    assert {name.removeprefix("aten::") for name in used} <= set(known.split())
    assert not any(node.meta["val"].is_complex() for node in program.graph.nodes
                   if isinstance(node.meta.get("val"), torch.Tensor))  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize(("max_batch", "taken"), [(1, [1]), (MAX_BATCH, [1, 3, MAX_BATCH])])
def test_the_exported_program_takes_its_batches_and_no_other(model, max_batch, taken):
    module = export_program(model, "logits", max_batch=max_batch).module()
    for batch in taken:
        found = module(torch.from_numpy(ids(batch)), torch.from_numpy(EVERY)).numpy(force=True)
        np.testing.assert_allclose(found, eager(model, ids(batch), EVERY), atol=1e-5)
    with pytest.raises(AssertionError, match="ids"):
        module(torch.from_numpy(ids(max_batch + 1)), torch.from_numpy(EVERY))


def test_calibration_rows_are_drawn_once_each():
    rows = np.arange(60, dtype=np.uint16).reshape(20, 3)
    found = calibration(rows, 7, seed=1)
    assert found.shape == (7, 2) and found.dtype == np.int64 and len(np.unique(found[:, 0])) == 7
    assert set(map(tuple, found)) <= set(map(tuple, rows[:, :-1].astype(np.int64)))
    np.testing.assert_array_equal(found, calibration(rows, 7, seed=1))
    assert len(calibration(rows, 100, seed=1)) == 20


def test_int8_quantizes_the_head_and_leaves_the_embedding(model):
    pytest.importorskip("modelopt", reason="NVIDIA's ModelOpt is not installed: pip install nvidia-modelopt")
    from picollm.engine.backends.modelopt import quantized

    found = quantized(model, "int8", ids(8))
    enabled = {name for name, module in found.named_modules() if getattr(module, "is_enabled", False)}
    assert {"head.weight_quantizer", "head.input_quantizer"} <= enabled
    assert not any(name.startswith("embedding") for name in enabled)
    assert torch.equal(found.embedding.weight, model.embedding.weight)
    with torch.no_grad():
        error = found(torch.from_numpy(ids(2)))[:, -1].numpy() - eager(model, ids(2))[:, 0]
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(eager(model, ids(2)))
