"""The compiled artefacts compute what the model computes, and a wrong one is refused in one line."""

import numpy as np
import pytest
import torch

from picollm.data.files import sha256, write_json
from picollm.data.manifest import describe
from picollm.engine import backends
from picollm.engine.backends import Subject, load_backend
from picollm.engine.export import Float32Norm, export_onnx, half_precision, in_precision
from picollm.engine.manifest import FORMAT, read_manifest
from picollm.engine.tensorrt import RTX, TORCH, build_rtx_plan, choose_target
from picollm.errors import PicollmError
from picollm.model.checkpoint import save_model
from picollm.model.transformer import ModelConfig, Transformer

CONTEXT, VOCAB, MAX_BATCH = 16, 500, 4
LAYERS = 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(VOCAB, CONTEXT, 28, LAYERS, 7, 36, 0.0, True, 10000.0, 32)).eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    for precision in ("fp32", "fp16"):
        export_onnx(in_precision(model, precision), folder / f"model.{precision}.onnx", max_batch=MAX_BATCH)
    return folder


@pytest.fixture
def engine(model, exported, tmp_path):
    """A complete engine folder: (manifest path, weights path)."""
    weights = tmp_path / "model.safetensors"
    save_model(model, weights, tmp_path / "config.json")
    (tmp_path / "model.fp32.onnx").write_bytes((exported / "model.fp32.onnx").read_bytes())
    write_json(tmp_path / "manifest.json", {
        "format": FORMAT, "target": "tensorrt-rtx", "engine": "model.fp16.engine", "onnx": "model.fp32.onnx",
        "precision": "fp16", "compute_capabilities": ["8.9"], "max_batch": MAX_BATCH,
        "checkpoint_sha256": sha256(weights), "files": [describe(tmp_path / "model.fp32.onnx")],
    })  # fmt: skip
    return tmp_path / "manifest.json", weights


@pytest.fixture
def subject(model, engine):
    manifest, weights = engine
    return Subject(model, read_manifest(manifest, weights=weights), manifest.parent, torch.device("cpu"), threads=2)


def ids(batch):
    return np.random.default_rng(batch).integers(VOCAB, size=(batch, CONTEXT))


def eager(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens))[:, -1].numpy()


@pytest.mark.parametrize("batch", [1, 3, MAX_BATCH])
def test_openvino_float32_equals_the_model(model, subject, batch):
    pytest.importorskip("openvino")
    backend = load_backend("openvino-f32", subject)
    tokens = ids(batch)
    np.testing.assert_allclose(backend.run(tokens), eager(model, tokens), atol=1e-4)


@pytest.mark.parametrize("name", ["eager-fp32", "eager-bf16"])
def test_eager_backends_return_float32_of_the_last_position(model, subject, name):
    tokens = ids(2)
    found = load_backend(name, subject).run(tokens)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, eager(model, tokens), atol=1e-5 if name == "eager-fp32" else 0.02)
    assert model.embedding.weight.dtype == torch.float32, "a backend must not change the model it was given"


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
    np.testing.assert_allclose(found, eager(model, ids(2)), atol=5e-3)


def test_the_onnx_file_names_no_path_of_this_machine(exported):
    data = (exported / "model.fp32.onnx").read_bytes()
    assert b"transformer.py" not in data and b"site-packages" not in data


def test_tensorrt_rtx_builds_a_strongly_typed_plan_without_a_gpu(model, exported, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan can be built")
    plan = tmp_path / "model.fp16.engine"
    built = build_rtx_plan(exported / "model.fp16.onnx", plan, compute_capabilities=["8.6", "8.9"],
                           context=CONTEXT, max_batch=MAX_BATCH)  # fmt: skip
    assert built["layers"]["NORMALIZATION"] == {"FLOAT": 2 * LAYERS + 1}
    assert built["layers"]["MATRIX_MULTIPLY"] == {"HALF": 6 * LAYERS + 1}  # qkv, q k, w v, out, gate_up, down; head
    weights = sum(p.numel() for p in model.parameters()) * 2
    assert plan.stat().st_size > weights


def test_damaged_onnx_is_one_clear_line(subject, tmp_path):
    (tmp_path / "model.fp32.onnx").write_bytes(b"not an onnx file")
    pytest.importorskip("openvino")
    with pytest.raises(PicollmError, match="OpenVINO can't read .*model.fp32.onnx"):
        load_backend("openvino-f32", subject)


def test_what_tensorrt_rtx_cannot_read_is_one_clear_line(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (tmp_path / "model.fp32.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(PicollmError, match="TensorRT-RTX can't read") as error:
        build_rtx_plan(tmp_path / "model.fp32.onnx", tmp_path / "x.engine", compute_capabilities=["8.9"],
                       context=CONTEXT, max_batch=1)  # fmt: skip
    assert "\n" not in str(error.value)


def test_a_flipped_byte_in_the_engine_folder_is_refused(engine):
    manifest, weights = engine
    file = manifest.parent / "model.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PicollmError, match="model.fp32.onnx is damaged"):
        read_manifest(manifest, weights=weights)
    file.unlink()
    with pytest.raises(PicollmError, match="model.fp32.onnx is missing"):
        read_manifest(manifest, weights=weights)


def test_an_engine_of_other_weights_is_refused(engine):
    manifest, weights = engine
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(PicollmError, match="built from other weights"):
        read_manifest(manifest, weights=weights)


def test_without_a_compiler_the_compiled_backend_says_so(subject, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    backend = load_backend("compile-bf16", subject)
    assert (backend.status, backend.run) == ("not run: no C++ compiler", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_tensorrt_says_so(subject):
    backend = load_backend("tensorrt", subject)
    assert (backend.status, backend.run) == ("not run: no NVIDIA GPU", None)


@pytest.mark.parametrize(("target", "said"), [
    ("torch-tensorrt", "the engine is for compute capability 8.9, this GPU has 9.0"),
    ("tensorrt-rtx", "no engine for this GPU"),
])  # fmt: skip
def test_an_engine_of_another_device_is_refused(model, subject, monkeypatch, target, said):
    monkeypatch.setattr(backends, "describe_gpu", lambda: {"compute_capability": "9.0"})
    foreign = Subject(model, subject.manifest | {"target": target}, subject.folder, torch.device("cuda"), threads=2)
    backend = load_backend("tensorrt", foreign)
    assert backend.run is None and backend.status.startswith("not run: ") and said in backend.status


def test_an_unknown_backend_names_the_allowed_ones(subject):
    with pytest.raises(PicollmError, match="'tensorrt-int8' does not exist; allowed: eager-fp32, .*tensorrt"):
        load_backend("tensorrt-int8", subject)


def test_the_compiler_that_is_installed_is_chosen(monkeypatch):
    installed = {"tensorrt_rtx", "torch_tensorrt"}
    monkeypatch.setattr("picollm.engine.tensorrt.find_spec", lambda name: name in installed or None)
    assert choose_target(torch.device("cuda")) == TORCH and choose_target(torch.device("cpu")) == RTX
    installed.discard("torch_tensorrt")
    assert choose_target(torch.device("cuda")) == RTX
    installed.clear()
    assert choose_target(torch.device("cpu")) is None
