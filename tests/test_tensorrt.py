"""torch-tensorrt's arguments, and which of NVIDIA's compilers is taken; tests/tensorrt_build.py builds for real."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_model import CONTEXT, MAX_BATCH, small_model

from picollm.engine.backends import tensorrt
from picollm.engine.backends.backend import BuildContext, LoadContext
from picollm.engine.backends.registry import BACKENDS
from picollm.engine.backends.tensorrt import RTX, TORCH, choose_target, shapes
from picollm.errors import PicollmError

CPU, LAST = torch.device("cpu"), np.array([CONTEXT - 1])


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_the_compiler_that_is_installed_is_chosen(monkeypatch):
    installed = {"tensorrt_rtx", "torch_tensorrt"}
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name in installed or None)
    assert choose_target(torch.device("cuda")) == TORCH and choose_target(CPU) == RTX
    installed.discard("torch_tensorrt")
    assert choose_target(torch.device("cuda")) == RTX
    installed.clear()
    assert choose_target(CPU) is None


def test_every_keyword_for_torch_tensorrt_exists_in_its_releases(model, tmp_path, monkeypatch):
    """An unknown parameter is silently ignored. The file lists the named parameters in the wheels of 2.11 to 2.14;
    the package itself needs a GPU, so the arguments of the calls are listed here."""
    used = {"dynamo.compile": set(), "save": set(), "Input": set(), "runtime.set_cudagraphs_mode": set()}

    def recorder(name, result=None):
        return lambda *args, **keywords: used[name].update(keywords) or result

    def saved(module, file_path, **keywords):
        used["save"].update(keywords)
        Path(file_path).write_bytes(b"engine")

    compiled = torch.nn.Module()
    compiled.add_module("_run_on_acc_0", torch.nn.Identity())
    loadable = SimpleNamespace(module=lambda: lambda *inputs: torch.zeros(1))
    package = SimpleNamespace(
        Input=recorder("Input"), save=saved, load=lambda path: loadable,
        dynamo=SimpleNamespace(compile=recorder("dynamo.compile", compiled)),
        runtime=SimpleNamespace(set_cudagraphs_mode=recorder("runtime.set_cudagraphs_mode")),
    )  # fmt: skip
    monkeypatch.setattr(tensorrt, "import_torch_tensorrt", lambda: package)
    ctx = BuildContext(model, tmp_path, CPU, MAX_BATCH, np.zeros((1, CONTEXT), np.int64), [])
    path = tmp_path / "logits.fp16.trt.pt2"
    tensorrt.build_torch_tensorrt(ctx, "logits", "fp16", path, shapes("logits", CONTEXT, MAX_BATCH))
    manifest = {"backends": {"tensorrt-fp16": {"files": {"logits": path.name}}}}
    run = BACKENDS["tensorrt-fp16"].load(LoadContext(model, manifest, tmp_path, CPU, 2), "logits")
    assert run(np.zeros((1, CONTEXT), np.int64), LAST) == 0
    assert path.read_bytes() == b"engine" and all(used.values())
    signatures = json.loads(Path(__file__).with_name("torch_tensorrt.json").read_text())
    assert list(signatures) == ["2.11.0", "2.12.1", "2.13.0", "2.14.0"]
    for known in signatures.values():
        assert all(keywords <= set(known[name]) for name, keywords in used.items())
    assert "enabled_precisions" not in signatures["2.13.0"]["dynamo.compile"]
    compiled.add_module("_run_on_acc_1", torch.nn.Identity())
    with pytest.raises(PicollmError, match="built 2 engines from the graph, not one"):
        tensorrt.build_torch_tensorrt(ctx, "logits", "fp16", path, shapes("logits", CONTEXT, MAX_BATCH))
