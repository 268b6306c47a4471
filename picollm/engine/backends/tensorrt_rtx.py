"""TensorRT-RTX: builds a plan ahead of time, without a GPU; runs it on a card that it was built for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from picollm.engine.backends.backend import DeviceRun
from picollm.errors import PicollmError, rerun
from picollm.files import write_bytes

TYPED_LAYERS = ("MATRIX_MULTIPLY", "NORMALIZATION", "SOFTMAX")  # layers whose precision matters


def build_plan(onnx: Path, plan_path: Path, capabilities: list[str], profile: Mapping[str, list[list[int]]]) -> dict:
    """Builds one plan for all compute `capabilities` ("8.9") and the shapes of a profile {input: [min, opt, max]}.

    Returns counts of the layers' types, e.g. {"MATRIX_MULTIPLY": {"HALF": 49}}: the plan itself can't be opened without
    a GPU. Raises PicollmError if the package is missing or the build fails.
    """
    trt = import_rtx()
    messages = collecting_logger(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(onnx.read_bytes()):
        reasons = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        reason = " ".join("; ".join(reasons).split())[:300]
        raise PicollmError(f"TensorRT-RTX can't read {onnx} ({reason}): leave tensorrt out of engine.backends")

    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        known = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if known is None:
            raise PicollmError(
                f"TensorRT-RTX {trt.__version__} does not support compute capability {capability}; on a GPU that has "
                "it: pip install torch-tensorrt==2.13.0"
            )
        config.set_compute_capability(known, index)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    optimization = builder.create_optimization_profile()
    for name, sizes in profile.items():
        optimization.set_shape(name, *map(tuple, sizes))
    config.add_optimization_profile(optimization)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = logged(messages)
        raise PicollmError(f"TensorRT-RTX built no engine ({why}): leave tensorrt-* out of engine.backends")
    write_bytes(plan_path, bytes(plan))
    return {"strongly_typed": True, "layers": layer_types(network)}


def logged(messages) -> str:
    """Returns the errors that a logger of `collecting_logger` holds."""
    return "; ".join(messages.errors)[:300] or "no reason given"


def run_settings(trt, engine):
    """Selects kernels specialised for the exact shapes before the first answer (by default a general one runs until
    the special one is ready, possibly during a measurement), and one launch per call."""
    settings = engine.create_runtime_config()
    settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return settings


def load_plan(path: Path) -> DeviceRun:
    """Loads a plan. Never executed by us: no GPU was available."""
    trt = import_rtx()
    messages = collecting_logger(trt)
    engine = trt.Runtime(messages).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise PicollmError(f"TensorRT-RTX can't load {path} ({logged(messages)}): {rerun('trt_compile')}")
    context, stream = engine.create_execution_context(run_settings(trt, engine)), torch.cuda.Stream()
    if context is None:
        raise PicollmError(f"TensorRT-RTX can't run {path} ({logged(messages)}): {rerun('trt_compile')}")
    every = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    names = [name for name in every if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    (output_name,) = set(every) - set(names)

    outputs: dict[tuple, Tensor] = {}  # by shape: a recorded graph writes to the same address each time

    def call(*inputs: Tensor) -> Tensor:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for name, x in zip(names, inputs, strict=True):
                if not context.set_input_shape(name, tuple(x.shape)):
                    raise PicollmError(
                        f"{path}: input {name} of shape {list(x.shape)} is outside the engine's profile: "
                        "lower the batch, or raise engine.max_batch and rebuild"
                    )
                context.set_tensor_address(name, x.data_ptr())
            shape = tuple(context.get_tensor_shape(output_name))
            output = outputs.setdefault(shape, torch.empty(shape, device="cuda"))
            context.set_tensor_address(output_name, output.data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise PicollmError(f"TensorRT-RTX failed to run {path} ({logged(messages)}): {rerun('trt_compile')}")
        torch.cuda.current_stream().wait_stream(stream)
        return output

    return DeviceRun(call, torch.device("cuda"))


def import_rtx() -> Any:  # it has no stubs
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise PicollmError(f"TensorRT-RTX can't be loaded ({error}): pip install tensorrt-rtx") from None
    return tensorrt_rtx


def collecting_logger(trt):
    """Returns a TensorRT logger that collects errors for the message instead of printing them."""

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
