"""The compiled artefacts compute what the model computes, and a wrong one is refused in one line."""

import copy
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from small_model import CONTEXT, LAYERS, MAX_BATCH, VOCAB, small_model

from picollm.engine.backends import tensorrt
from picollm.engine.backends.backend import BuildContext, DeviceRun, LoadContext
from picollm.engine.backends.pytorch import AotInductor, row_by_row, tf32
from picollm.engine.backends.registry import BACKENDS, load_backend
from picollm.engine.backends.tensorrt import RTX, TORCH, shapes
from picollm.engine.backends.tensorrt_rtx import build_plan
from picollm.engine.build import artefact, build, read_manifest
from picollm.engine.export import LogitsAlone, compilable
from picollm.engine.grid import BACKENDS as NAMES
from picollm.engine.grid import Grid
from picollm.errors import PicollmError
from picollm.files import read_json, sha256, write_json
from picollm.model.weights import save_model

BUILT = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-bf16")
TENSORRT = ("tensorrt-fp16", "tensorrt-b1-fp16")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def built(model, tmp_path_factory):
    """Builds (engine folder, weights) with every artefact that takes little time."""
    folder = tmp_path_factory.mktemp("engine")
    weights = folder / "model.safetensors"
    save_model(model, weights, folder / "config.json")
    rows = np.random.default_rng(0).integers(VOCAB, size=(8, CONTEXT))
    ctx = BuildContext(model, folder / "engine", CPU, MAX_BATCH, rows, ["8.6", "8.9"])
    names = BUILT + (TENSORRT if find_spec("tensorrt_rtx") else ())
    build(ctx, Grid(names, {"last": (1,), "loss": (1,)}, MAX_BATCH, emulated=True), checkpoint_sha256=sha256(weights))
    return folder / "engine", weights


@pytest.fixture
def copied(built, tmp_path):
    """Makes a copy to damage: (manifest path, weights)."""
    folder, weights = built
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "manifest.json", weights


def subject_of(model, manifest, weights, device=CPU):
    return LoadContext(model, read_manifest(manifest, weights=weights), manifest.parent, device, threads=2)


@pytest.fixture
def ctx(model, copied):
    return subject_of(model, *copied)


def ids(batch):
    return np.random.default_rng(batch).integers(VOCAB, size=(batch, CONTEXT))


LAST, EVERY = np.array([CONTEXT - 1]), np.arange(CONTEXT)


def eager(model, tokens, positions=LAST):
    with torch.no_grad():
        return model(torch.from_numpy(tokens))[:, positions].numpy()


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32"])
@pytest.mark.parametrize("batch", [1, 3, MAX_BATCH])
def test_float32_artefacts_equal_the_model_at_any_batch_and_position(model, ctx, name, batch):
    loaded, tokens = load_backend(name, ctx, ("logits", "nats")), ids(batch)
    for positions in (LAST, EVERY, np.array([5, 2])):
        np.testing.assert_allclose(loaded.run(tokens, positions), eager(model, tokens, positions), atol=1e-4)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens))[:, :-1].flatten(0, 1)
        nats = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[:, 1:]).flatten(), reduction="none")
    np.testing.assert_allclose(loaded.runs["nats"](tokens), nats.reshape(batch, -1).numpy(), atol=1e-4)


@pytest.mark.parametrize(("name", "atol"), [("eager-fp32", 1e-5), ("eager-bf16", 0.02), ("openvino-bf16", 0.02),
                                            ("onnxruntime-int8", 0.1)])  # fmt: skip
def test_other_precisions_are_near_and_return_float32(model, ctx, name, atol):
    loaded = load_backend(name, ctx)
    if loaded.status.startswith("not run: ") and name.startswith("openvino"):  # no bf16, or ONEDNN_MAX_CPU_ISA is set
        pytest.skip(loaded.status)
    found = loaded.run(ids(2), LAST)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, eager(model, ids(2)), atol=atol)
    assert model.embedding.weight.dtype == torch.float32, "a backend must not change the model it was given"


@pytest.mark.parametrize("positions", [LAST, EVERY, np.array([5, 2])])
def test_the_last_block_where_it_is_read_gives_the_plain_models_answer(model, positions):
    """Compares in double precision, so that only a wrong computation can differ."""
    exact, tokens = copy.deepcopy(model).double(), torch.from_numpy(ids(3))
    with torch.no_grad():
        found = exact.hidden_at(tokens, torch.from_numpy(positions))
        torch.testing.assert_close(found, exact.hidden(tokens)[:, positions], rtol=0, atol=1e-12)
    assert isinstance(compilable(model, "logits"), LogitsAlone), "compiled backends get it"


def test_no_artefact_names_a_path_of_this_machine(built):
    data = (built[0] / "logits.fp32.onnx").read_bytes()
    assert b"transformer.py" not in data and b"site-packages" not in data


def test_tensorrt_rtx_builds_a_strongly_typed_plan_without_a_gpu(model, built):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan can be built")
    about = read_json(built[0] / "manifest.json")["backends"]["tensorrt-fp16"]["graphs"]["logits"]
    assert about["target"] == RTX and about["compute_capabilities"] == ["8.6", "8.9"]
    assert about["profile"] == {"ids": [[1, 16], [4, 16], [4, 16]], "positions": [[1], [2], [16]]}
    assert about["layers"]["NORMALIZATION"] == {"FLOAT": 2 * LAYERS + 1}
    assert about["layers"]["MATRIX_MULTIPLY"] == {"HALF": 6 * LAYERS + 1}  # qkv, q k, w v, out, gate_up, down; head
    weights = sum(p.numel() for p in model.parameters()) * 2
    assert (built[0] / "logits.fp16.plan").stat().st_size > weights


def test_an_engine_of_one_row_has_a_profile_of_its_own_and_takes_rows_one_by_one(built, model):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan can be built")
    entry = read_json(built[0] / "manifest.json")["backends"]["tensorrt-b1-fp16"]
    assert entry["files"] == {"logits": "logits.fp16.b1.plan", "nats": "nats.fp16.b1.plan"}
    assert entry["graphs"]["logits"]["profile"]["ids"] == [[1, 16], [1, 16], [1, 16]]
    taken = []

    def one(tokens, positions):
        taken.append(len(tokens))
        return model(tokens)[:, positions]

    run = row_by_row(DeviceRun(one, CPU))
    np.testing.assert_allclose(run(ids(3), EVERY), eager(model, ids(3), EVERY), atol=1e-5)
    assert taken == [1, 1, 1]


def test_the_manifest_says_what_each_artefact_is(built):
    manifest = read_manifest(built[0] / "manifest.json", weights=built[1])
    assert {entry["file"] for entry in manifest["files"]} == {p.name for p in built[0].iterdir()} - {"manifest.json"}
    int8, float32 = (artefact(manifest, f"onnxruntime-{precision}") for precision in ("int8", "fp32"))
    assert int8["bytes"] == (built[0] / "logits.int8.onnx").stat().st_size < 0.5 * float32["bytes"]
    assert int8["build_seconds"] >= float32["build_seconds"] > 0  # the export is part of it
    assert artefact(manifest, "eager-fp32") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aoti-fp32", "aoti-bf16", "openvino-int8"])
def test_artefacts_that_take_long_to_build(model, tmp_path, name):
    if name == "openvino-int8":
        pytest.importorskip("nncf", reason="NNCF is not installed")
    weights = tmp_path / "model.safetensors"
    save_model(model, weights, tmp_path / "config.json")
    ctx = BuildContext(model, tmp_path / "engine", CPU, MAX_BATCH, ids(8), ["8.9"])
    build(ctx, Grid((name,), {"last": (1,)}, MAX_BATCH, emulated=True), checkpoint_sha256=sha256(weights))
    loaded = load_backend(name, subject_of(model, tmp_path / "engine/manifest.json", weights))
    found, expected = loaded.run(ids(3), EVERY), eager(model, ids(3), EVERY)
    limit = {"aoti-fp32": 1e-5, "aoti-bf16": 0.02, "openvino-int8": 0.2}[name]
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < limit
    if name == "openvino-int8":  # head and embedding are one int8 matrix
        head, weights = VOCAB * model.config.d_model, sum(p.numel() for p in model.parameters())
        assert (tmp_path / "engine/logits.int8.bin").stat().st_size < head + 4 * (weights - head)


@pytest.mark.parametrize(("file", "backend", "said"), [
    ("logits.fp32.onnx", "openvino-fp32", "OpenVINO can't read"),
    ("logits.int8.onnx", "onnxruntime-int8", "ONNX Runtime can't read"),
])  # fmt: skip
def test_what_a_runtime_cannot_read_is_one_clear_line(ctx, file, backend, said):
    (ctx.folder / file).write_bytes(b"not a model")
    loaded = load_backend(backend, ctx)
    assert loaded.runs == {} and loaded.status.startswith(f"failed: {said} ") and file in loaded.status
    assert "\n" not in loaded.status
    assert load_backend("eager-fp32", ctx).status == "ok"


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_one_clear_line(built, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan can be built")
    profile = shapes("logits", CONTEXT, MAX_BATCH)
    with pytest.raises(PicollmError, match=r"TensorRT-RTX 1\.\S+ does not support compute capability 9\.0; on a GPU"):
        build_plan(built[0] / "logits.fp16.onnx", tmp_path / "a.plan", ["9.0"], profile)
    assert not (tmp_path / "a.plan").exists()


def test_what_tensorrt_rtx_cannot_read_is_one_clear_line(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (tmp_path / "x.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(PicollmError, match="TensorRT-RTX can't read") as error:
        build_plan(tmp_path / "x.onnx", tmp_path / "x.plan", ["8.9"], shapes("logits", CONTEXT, 1))
    assert "\n" not in str(error.value) and not (tmp_path / "x.plan").exists()


def test_a_flipped_byte_in_the_engine_folder_is_refused(copied):
    manifest, weights = copied
    file = manifest.parent / "logits.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PicollmError, match="logits.fp32.onnx is damaged"):
        read_manifest(manifest, weights=weights)
    file.unlink()
    with pytest.raises(PicollmError, match="logits.fp32.onnx is missing"):
        read_manifest(manifest, weights=weights)


def test_an_engine_of_other_weights_is_refused(copied, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(copied[1].read_bytes() + b" ")
    with pytest.raises(PicollmError, match="built from other weights"):
        read_manifest(copied[0], weights=other)


def with_entry(ctx, name, entry):
    backends = ctx.manifest["backends"] | {name: entry}
    return LoadContext(ctx.model, ctx.manifest | {"backends": backends}, ctx.folder, ctx.device, 2)


def test_a_package_of_another_version_or_processor_is_refused(ctx):
    here = AotInductor("bf16").made_for(CPU)
    entry = {"reason": None, "files": {"logits": "logits.bf16.pt2"}, "graphs": {"logits": {}}}
    for changed, said in (
        ({"torch": "2.0.0"}, "built for torch 2.0.0, here is"),
        ({"isa": ["altivec"]}, "isa altivec, here"),
    ):
        loaded = load_backend("aoti-bf16", with_entry(ctx, "aoti-bf16", entry | {"made_for": here | changed}))
        assert loaded.runs == {} and said in loaded.status and loaded.status.endswith("run trt_compile here")


def test_what_was_not_built_says_so(ctx):
    assert load_backend("openvino-int8", ctx).status.startswith("not run: it was not built: name it in engine.")
    entry = {"files": {}, "reason": "it was not built: NNCF is not installed: pip install nncf"}
    status = load_backend("openvino-int8", with_entry(ctx, "openvino-int8", entry)).status
    assert status == "not run: it was not built: NNCF is not installed: pip install nncf"


def test_an_output_whose_graph_was_not_built_says_so(ctx):
    entry = ctx.manifest["backends"]["openvino-fp32"]
    entry = entry | {"files": {"logits": entry["files"]["logits"]}}
    status = load_backend("openvino-fp32", with_entry(ctx, "openvino-fp32", entry), ("logits", "nats")).status
    assert status == "not run: its graph nats was not built: name the output in engine.outputs, and run trt_compile"


def test_one_build_that_fails_costs_nothing_else(model, tmp_path, monkeypatch):
    class Unsupported(type(BACKENDS["onnxruntime-int8"])):
        def build(self, ctx, graph):
            raise AssertionError("the operator\naten::thing has no converter")

    monkeypatch.setitem(BACKENDS, "onnxruntime-int8", Unsupported("int8"))
    ctx = BuildContext(model, tmp_path, CPU, MAX_BATCH, ids(8), ["8.9"])
    manifest = build(ctx, Grid(("onnxruntime-int8", "onnxruntime-fp32"), {"last": (1,)}, 4), checkpoint_sha256="0")
    found = manifest["backends"]
    assert found["onnxruntime-int8"]["reason"] == "its build failed: the operator aten::thing has no converter"
    assert found["onnxruntime-int8"]["files"] == {} and found["onnxruntime-fp32"]["reason"] is None


def test_a_build_clears_its_own_files_and_no_others(model, tmp_path):
    for name in ("logits.int8.onnx", ".nats.fp32.onnx.partial", "notes.txt"):
        (tmp_path / name).write_text("old")
    ctx = BuildContext(model, tmp_path, CPU, MAX_BATCH, ids(8), ["8.9"])
    manifest = build(ctx, Grid(("eager-bf16",), {"last": (1,)}, 4), checkpoint_sha256="0")
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "notes.txt"} and manifest["files"] == []


def test_a_full_disk_stops_the_build(model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("picollm.engine.backends.backend.export_onnx", full)
    ctx = BuildContext(model, tmp_path, CPU, MAX_BATCH, ids(8), ["8.9"])
    with pytest.raises(OSError, match="No space left"):
        build(ctx, Grid(("onnxruntime-fp32",), {"last": (1,)}, 4), checkpoint_sha256="0")
    assert not (tmp_path / "manifest.json").exists()


LOADED_TWICE = """
import faulthandler, os, signal, sys
from types import SimpleNamespace
from picollm.engine.backends.openvino import OpenVino
faulthandler.enable()  # gives signals a stack of their own, as OpenVINO does
ctx = SimpleNamespace(file=lambda *_: sys.argv[1], threads=1)
first, second = (OpenVino("fp32").load(ctx, "logits") for _ in range(2))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_openvino_is_handled(built):
    command = [sys.executable, "-c", LOADED_TWICE, str(built[0] / "logits.fp32.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n")


@pytest.mark.exhaustive
def test_torch_compile_compiles_every_shape(model, ctx):
    """Beyond its limit of recompilations, 8, it would silently run eagerly; fullgraph makes that an error."""
    loaded = load_backend("compile-fp32", ctx)
    for batch in range(1, 11):
        found = loaded.run(ids(batch), LAST)
    np.testing.assert_allclose(found, eager(model, ids(10)), atol=1e-4)


@pytest.mark.parametrize(("name", "module", "said"), [
    ("onnxruntime-fp32", "onnxruntime", "ONNX Runtime is not installed: pip install onnxruntime"),
    ("openvino-fp32", "openvino", "OpenVINO is not installed: pip install openvino"),
    ("openvino-int8", "nncf", "NNCF is not installed: pip install nncf"),
    ("tensorrt-fp16", "tensorrt_rtx", "tensorrt-rtx is not installed: pip install tensorrt-rtx"),
])  # fmt: skip
def test_a_runtime_that_is_not_installed_is_named_with_its_command(monkeypatch, name, module, said):
    package = {"onnxruntime-fp32": "onnxruntime", "openvino-fp32": "openvino", "openvino-int8": "openvino"}
    where = f"picollm.engine.backends.{package.get(name, 'tensorrt')}.find_spec"
    monkeypatch.setattr(where, lambda asked: None if asked == module else find_spec(asked))
    assert BACKENDS[name].cannot_build(CPU) == said


@pytest.mark.parametrize("name", ["compile-bf16", "aoti-bf16"])
def test_without_a_compiler_it_says_so(monkeypatch, name):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert BACKENDS[name].cannot_build(CPU) == "no C++ compiler"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_what_needs_one_says_so(ctx):
    for name in ("tensorrt-fp16", "cudagraph-bf16", "eager-tf32", "eager-fp16"):
        assert load_backend(name, ctx).status == "not run: no NVIDIA GPU"


@pytest.mark.parametrize(("about", "said"), [
    ({"target": TORCH, "compute_capabilities": ["8.9"]}, "for compute capability 8.9, this GPU has 9.0: run trt_com"),
    ({"target": TORCH, "compute_capabilities": ["9.0"]}, "the engine is torch-tensorrt's, which is not installed"),
    ({"target": RTX, "compute_capabilities": ["9.0"]}, "built for tensorrt-rtx 0.1, here is"),
])  # fmt: skip
def test_an_engine_of_another_device_or_version_is_refused(monkeypatch, about, said):
    monkeypatch.setattr(tensorrt, "describe_gpu", lambda: {"compute_capability": "9.0"})
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name == "tensorrt_rtx")
    built = {"graphs": {"logits": about}, "made_for": {"tensorrt-rtx": "0.1"}}
    assert said in BACKENDS["tensorrt-fp16"].refuses(built, torch.device("cuda"))


def test_an_unknown_backend_names_the_allowed_ones(ctx):
    with pytest.raises(PicollmError, match="'tensorrt-int4' does not exist; allowed: eager-fp32, .*tensorrt-fp8"):
        load_backend("tensorrt-int4", ctx)
    assert tuple(BACKENDS) == NAMES


def test_tf32_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError, match="inside"), tf32(not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
        raise RuntimeError("inside")
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_a_manifest_of_an_older_format_is_refused(copied):
    manifest, weights = copied
    write_json(manifest, read_json(manifest) | {"format": 1})
    with pytest.raises(PicollmError, match="is of format 1, not 2: run `snakemake --cores all -R trt_compile`"):
        read_manifest(manifest, weights=weights)
