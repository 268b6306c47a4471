"""The TensorRT engine, by one of two compilers that share the exported graph:

without an NVIDIA GPU   TensorRT-RTX compiles the ONNX file ahead of time for named compute capabilities (Turing to
                        Blackwell RTX cards) into a plan that such a card finishes by JIT. It is built here, not run.
with one                torch-tensorrt compiles the torch.export program for that GPU into a loadable `.ep` file.
                        This path has not been executed yet: it is written against torch-tensorrt 2.11 to 2.14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from picollm.data.files import atomic_path, write_bytes
from picollm.engine.export import export_program, in_precision
from picollm.errors import PicollmError
from picollm.model.transformer import Transformer

RTX, TORCH = "tensorrt-rtx", "torch-tensorrt"  # targets, named like their packages
MODULES = {RTX: "tensorrt_rtx", TORCH: "torch_tensorrt"}
TYPED_LAYERS = ("MATRIX_MULTIPLY", "NORMALIZATION", "SOFTMAX")  # the ones whose precision matters


def choose_target(device: torch.device) -> str | None:
    """torch-tensorrt for this machine's GPU, else TensorRT-RTX ahead of time; None where neither is installed.

    Both are optional: they are proprietary, and the rest of the pipeline needs neither.
    """
    wanted = (TORCH, RTX) if device.type == "cuda" else (RTX,)
    return next((target for target in wanted if find_spec(MODULES[target])), None)


def build_rtx_plan(
    onnx_path: str | Path, plan_path: str | Path, *, compute_capabilities: list[str], context: int, max_batch: int
) -> dict:
    """TensorRT-RTX, ahead of time, no GPU needed: one plan for all `compute_capabilities` ("8.9"), batch 1..max_batch.

    Returns the builder's flags and the layers' types as counts, e.g. {"MATRIX_MULTIPLY": {"HALF": 49}}: the plan itself
    can't be opened without a GPU. Raises PicollmError where the package is missing or the build fails.
    """
    trt = import_rtx()
    messages = collecting_logger(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(Path(onnx_path).read_bytes()):
        reasons = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise PicollmError(f"TensorRT-RTX can't read {onnx_path}: {' '.join('; '.join(reasons).split())[:300]}")

    config = builder.create_builder_config()
    config.num_compute_capabilities = len(compute_capabilities)
    for index, capability in enumerate(compute_capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), index)
    profile = builder.create_optimization_profile()
    profile.set_shape("ids", (1, context), (max_batch, context), (max_batch, context))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PicollmError(f"TensorRT-RTX built no engine: {'; '.join(messages.errors)[:300]}")
    write_bytes(plan_path, bytes(plan))
    return {
        "flags": {"strongly_typed": True, "profile": {"min": 1, "opt": max_batch, "max": max_batch}},
        "layers": layer_types(network),
    }


def import_rtx():
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise PicollmError(f"TensorRT-RTX can't be loaded ({error}): pip install {RTX}") from None
    return tensorrt_rtx


def collecting_logger(trt):
    """A TensorRT logger that keeps errors for the message instead of printing them."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Logger()


def layer_types(network) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter] = {kind: Counter() for kind in TYPED_LAYERS}
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type.name in counts:
            counts[layer.type.name][layer.get_output(0).dtype.name] += 1
    return {kind: dict(types) for kind, types in counts.items()}


def build_torch_tensorrt(model: Transformer, path: str | Path, *, precision: str, max_batch: int) -> dict:
    """Not executed yet (no GPU at hand). torch-tensorrt for this machine's GPU, saved as an exported program (`.ep`).

    Precision comes from the graph alone: since 2.13 `enabled_precisions` is swallowed without a word and gives a
    float32 engine. Returns the compiler's flags. Raises PicollmError where the package is missing.
    """
    torch_tensorrt = import_torch_tensorrt()
    context = model.config.context
    program = export_program(in_precision(model, precision).cuda(), max_batch=max_batch)
    ids = torch_tensorrt.Input(
        min_shape=(1, context), opt_shape=(max_batch, context), max_shape=(max_batch, context),
        dtype=torch.int64, name="ids",
    )  # fmt: skip
    flags = {
        "require_full_compilation": True,  # a part left to PyTorch would be timed as TensorRT
        "min_block_size": 1,
        "use_fast_partitioner": False,
        "optimization_level": 4,
        "attn_bias_is_causal": True,  # our only mask is the causal one
        "immutable_weights": True,
    }
    compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[ids], **flags)
    with atomic_path(path) as temporary:
        torch_tensorrt.save(compiled, str(temporary), output_format="exported_program", arg_inputs=[ids])
    return {"flags": flags | {"profile": {"min": 1, "opt": max_batch, "max": max_batch}}}


def load_torch_tensorrt(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """Not executed yet (no GPU at hand). ids [B, T] int64 on the host -> logits [B, V] float32 on the host."""
    module = import_torch_tensorrt().load(str(path)).module()

    def run(ids: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(ids).cuda()).cpu().numpy()

    return run


def import_torch_tensorrt():
    try:
        import torch_tensorrt
    except ImportError as error:
        raise PicollmError(f"torch-tensorrt can't be loaded ({error}): pip install {TORCH}==2.13.0") from None
    return torch_tensorrt
