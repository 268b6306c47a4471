"""OpenVINO on the CPU, from the float32 ONNX file. Its default precision depends on the CPU, so it is pinned."""

from __future__ import annotations

import logging
import os
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from picollm.engine.backends.backend import Backend, BuildContext, LoadContext, Run
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import atomic_path
from picollm.precision import emulated_bf16

if TYPE_CHECKING:
    from openvino import Core, Model

ONEDNN_LIMIT, CAPABILITIES = "ONEDNN_MAX_CPU_ISA", "OPTIMIZATION_CAPABILITIES"
HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVino(Backend):
    runtime = "openvino"

    def cannot_run(self, device: torch.device) -> str | None:
        if not find_spec("openvino"):
            return "OpenVINO is not installed: pip install openvino"
        if self.precision == "bf16" and not has_bf16():
            return "this processor has no bf16 instructions"
        return None

    def cannot_build(self, device: torch.device) -> str | None:
        if self.precision == "int8" and not find_spec("nncf"):
            return "NNCF is not installed: pip install nncf"
        return self.cannot_run(device)

    def build(self, ctx: BuildContext, graph: str) -> tuple[Path, dict]:
        onnx = ctx.onnx(graph, "fp32")
        if self.precision != "int8":
            return onnx, {}
        return quantize(onnx, ctx.path(graph, "int8", ".xml"), ctx.calibration)

    def load(self, ctx: LoadContext, graph: str) -> Run:
        path = ctx.file(self.name, graph)
        options = {
            # For int8, the precision around the products, which are coarser than bf16.
            "INFERENCE_PRECISION_HINT": HINTS.get(self.precision) or ("bf16" if has_bf16() else "f32"),
            "INFERENCE_NUM_THREADS": ctx.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            request = core().compile_model(path, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise PicollmError(
                f"OpenVINO can't read {path} ({one_line(error)[:300]}): {rerun('trt_compile')}"
            ) from None

        def run(*inputs: np.ndarray) -> np.ndarray:
            return request.infer(list(inputs))[0]

        return run


@cache
def core() -> Core:
    """Returns the only core of this process, which lives as long as the process.

    Each core (2026.4) installs its own signal stack and restores the previous one when destroyed. Of two, the first
    destroyed frees the stack that the second restores, and the next signal with a handler ends the process.
    """
    import openvino

    made = openvino.Core()
    # oneDNN's limit is for torch: OpenVINO obeys it in some kernels but not in others, and the mixture crashes. Its
    # plugin reads the variable once, when it is loaded, which is now.
    limit = os.environ.pop(ONEDNN_LIMIT, None)
    made.get_property("CPU", CAPABILITIES)
    if limit is not None:
        os.environ[ONEDNN_LIMIT] = limit
    return made


def has_bf16() -> bool:
    return emulated_bf16() is None and "BF16" in core().get_property("CPU", CAPABILITIES)


def quantize(onnx: Path, path: Path, calibration: np.ndarray) -> tuple[Path, dict]:
    """Applies NNCF's post-training int8, with activations calibrated on rows [n, T]; writes an IR: .xml and .bin."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = core().read_model(onnx)
    multiply_by_constants(model)
    context = calibration.shape[1]
    given = [row[None] for row in calibration]
    if len(model.inputs) == 2:
        given = [(row, np.arange(context)) for row in given]
    with redirect_stdout(StringIO()):  # hides its progress bars
        quantized = nncf.quantize(
            model,
            nncf.Dataset(given),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(given),
        )
    # The .bin is named after the .xml: both are written under temporary names, and the .xml is renamed last.
    with atomic_path(path) as temporary:
        ir = temporary.with_suffix(".xml")
        openvino.save_model(quantized, ir)
        ir.with_suffix(".bin").rename(path.with_suffix(".bin"))
        ir.rename(temporary)
    return path, {"from": onnx.name, "calibration_rows": len(given), "preset": "mixed", "model_type": "transformer"}


def multiply_by_constants(model: Model) -> None:
    """Replaces x @ transpose(constant) by a product that transposes: NNCF quantizes only constants.

    The exported head is the embedding [V, D] transposed. It would stay float next to the embedding's int8; this way
    both are one matrix.
    """
    from openvino import opset13 as operators

    for node in model.get_ops():
        if node.get_type_name() != "Transpose" or node.input_value(0).get_node().get_type_name() != "Constant":
            continue
        for user in (target.get_node() for target in node.output(0).get_target_inputs()):
            if user.get_type_name() == "MatMul" and user.input_value(1) == node.output(0):
                product = operators.matmul(user.input_value(0), node.input_value(0), False, True)
                product.set_friendly_name(user.get_friendly_name())
                for reader in user.output(0).get_target_inputs():
                    reader.replace_source_output(product.output(0))
