"""Int8 and fp8 for TensorRT: NVIDIA's ModelOpt inserts quantizers into the model, and the exported graph has them.

Fake quantization also runs on a CPU, so the accuracy can be judged anywhere; the graph with TensorRT's own operators
needs a GPU. That part was never executed by us.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from picollm.engine.backends.backend import BuildContext
from picollm.engine.export import export_program, half_precision
from picollm.model.foreign import Examined

PRESETS = {"int8": "INT8_SMOOTHQUANT_CFG", "fp8": "FP8_DEFAULT_CFG"}
CALIBRATION_BATCH = 8


def quantized(model: Examined, precision: str, calibration: np.ndarray) -> Examined:
    """Returns a copy whose linear layers quantize weights and inputs, calibrated on rows [n, T] int64.

    The vocabulary head, 61 % of the original's arithmetic, is enabled by name: ModelOpt's presets exclude layers that
    look like one. The embedding stays unquantized, so head and embedding become two matrices.
    """
    import modelopt.torch.quantization as mtq

    model = copy.deepcopy(model)
    # SmoothQuant moves scales from a layer's inputs into its weights; the embedding must not get those of the head.
    head = cast(Any, model.head)
    head.weight = nn.Parameter(head.weight.detach().clone())
    how = copy.deepcopy(getattr(mtq, PRESETS[precision]))
    how["quant_cfg"] += [{"quantizer_name": f"*head.{what}_quantizer", "enable": True} for what in ("weight", "input")]

    def feed(fed: Any) -> None:
        device = fed.embedding.weight.device
        for start in range(0, len(calibration), CALIBRATION_BATCH):
            fed(torch.from_numpy(calibration[start : start + CALIBRATION_BATCH]).to(device))

    with torch.no_grad():
        return mtq.quantize(model, how, feed)


def quantized_program(ctx: BuildContext, graph: str, precision: str, max_batch: int) -> torch.export.ExportedProgram:
    """Exports the graph with TensorRT's quantizing operators around float16 arithmetic; needs a GPU."""
    from modelopt.torch.quantization.utils import export_torch_mode

    model = quantized(half_precision(ctx.model).to(ctx.device), precision, ctx.calibration)
    with export_torch_mode():
        return export_program(model, graph, max_batch=max_batch)
