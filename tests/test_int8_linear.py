"""Int8 products by PyTorch's own operators: near the float32 product, exact as integers, and fused when compiled."""

import zipfile

import numpy as np
import pytest
import torch
from small_model import CONTEXT, MAX_BATCH, VOCAB, small_model
from torch import nn

from picollm.engine.backends.backend import BuildContext
from picollm.engine.backends.int8_linear import Int8Linear, with_int8_products
from picollm.engine.backends.registry import BACKENDS
from picollm.engine.export import GRAPHS
from picollm.hardware import describe_cpu, has_amx
from picollm.precision import has_bf16

CPU = torch.device("cpu")


def drawn(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()


def test_the_error_is_at_most_that_of_rounding():
    x, weight, bias = drawn(2, 3, 64), drawn(20, 64), drawn(20)
    found = Int8Linear(weight, bias)(x)
    step_x, step_w = x.abs().amax(-1, keepdim=True) / 127, weight.abs().amax(1) / 127
    # Each factor is off by half a step at most.
    limit = x.abs().sum(-1, keepdim=True) * step_w / 2 + step_x * weight.abs().sum(1) / 2 + 64 * step_x * step_w / 4
    assert ((found - (x @ weight.T + bias)).abs() <= limit + 1e-5).all()
    assert (found - (x @ weight.T + bias)).abs().max() > 1e-4  # it did round


def test_what_int8_holds_exactly_is_multiplied_exactly():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, (size, 32), generator=generator).float() for size in (6, 8))
    x[:, 0], weight[:, 0] = 127, 127  # so that each scale is 1
    assert torch.equal(Int8Linear(weight, None)(x), (x.long() @ weight.long().T).float())


def test_rows_and_weights_of_zeros_give_zeros():
    weight = drawn(4, 32)
    weight[1] = 0
    found = Int8Linear(weight, None)(torch.stack((torch.zeros(32), drawn(32))))
    assert torch.equal(found[0], torch.zeros(4)) and found[1, 1] == 0 and found[1, 0] != 0


def test_every_product_is_replaced_and_the_model_is_left_alone():
    model, ids = small_model(), torch.arange(CONTEXT)[None]
    expected = model(ids)
    int8 = with_int8_products(model)
    assert not any(isinstance(module, nn.Linear) for module in int8.modules())
    assert torch.equal(int8.embedding.weight, model.embedding.weight) and torch.equal(model(ids), expected)
    assert (int8(ids) - expected).norm() / expected.norm() < 0.05


def test_layers_of_gpt2_count_as_linear():
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(12, 32)
    nn.init.normal_(layer.bias)
    x = drawn(3, 32)
    int8 = with_int8_products(nn.Sequential(layer))
    assert isinstance(int8[0], Int8Linear) and (int8(x) - layer(x)).norm() / layer(x).norm() < 0.02


@pytest.mark.skipif(has_amx(), reason="this processor has AMX")
def test_without_matrix_instructions_it_says_so():
    assert BACKENDS["aoti-int8"].cannot_build(CPU) == "it needs a processor with AMX, for int8 products"


@pytest.mark.parametrize(("isa", "has"), [(["amx_bf16", "amx_int8"], True), (["avx512_vnni", "avx512_bf16"], False)])
def test_which_processors_have_them(monkeypatch, isa, has):
    monkeypatch.setattr("picollm.hardware.describe_cpu", lambda: describe_cpu() | {"isa": isa})
    assert has_amx() is has


def package(name, folder, graph="logits"):
    """Builds a package of the small model; returns its path and the C++ that Inductor wrote for it."""
    ctx = BuildContext(small_model(), folder, CPU, MAX_BATCH, np.zeros((3, CONTEXT), np.int64), [])
    path, _ = BACKENDS[name].build(ctx, graph)
    with zipfile.ZipFile(path) as files:
        return path, "".join(files.read(file).decode() for file in files.namelist() if file.endswith(".cpp"))


@pytest.mark.slow
@pytest.mark.skipif(not (has_amx() and has_bf16()), reason="this processor has no AMX")
@pytest.mark.parametrize("graph", ["logits", pytest.param("nats", marks=pytest.mark.exhaustive)])
def test_the_compiled_package_calls_no_product_of_the_library(tmp_path, graph):
    path, code = package("aoti-int8", tmp_path, graph)
    assert "amx" in code and "_int_mm_out" not in code and "qlinear" not in code
    given = {"ids": torch.randint(VOCAB, (3, CONTEXT)), "positions": torch.tensor([0, 5, CONTEXT - 1])}
    inputs = [given[name] for name in GRAPHS[graph].inputs]
    expected = GRAPHS[graph](small_model())(*inputs)
    found = torch._inductor.aoti_load_package(str(path))(*inputs)
    assert (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "is_frozen"), [("aoti-b1-fp32", True), ("aoti-fp32", False)])
def test_packages_for_one_row_hold_weights_laid_out_for_their_products(tmp_path, name, is_frozen):
    assert ("_frozen_param" in package(name, tmp_path)[1]) is is_frozen
