"""Exports a trained Transformer to a torch.export program and an ONNX file, the inputs of every compiled backend.

All backends compute the same two graphs, with T tokens (static: rotary tables become constants) and a dynamic batch.
A next-token service needs only the last position; copying all T x V logits off the device would cost more than the
model itself.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from picollm.files import atomic_path
from picollm.model.foreign import Examined
from picollm.model.transformer import Transformer


class Logits(nn.Module):
    """ids [B, T] int64, positions [P] int64 -> logits of these positions [B, P, V] float32.

    One graph serves the last position, a whole sequence, and the accuracy gate.
    """

    inputs = ("ids", "positions")

    def __init__(self, model: Examined) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, positions_P: Tensor) -> Tensor:
        return self.model.logits(self.hidden(ids_BT, positions_P)).float()

    def hidden(self, ids_BT: Tensor, positions_P: Tensor) -> Tensor:
        return self.model.hidden(ids_BT).index_select(1, positions_P)


class LogitsAlone(Logits):
    """Returns the same logits; computes the last block only at the positions that are read."""

    def hidden(self, ids_BT: Tensor, positions_P: Tensor) -> Tensor:
        return cast(Transformer, self.model).hidden_at(ids_BT, positions_P)


class Nats(nn.Module):
    """ids [B, T] int64 -> nats of each next token [B, T - 1] float32."""

    inputs = ("ids",)

    def __init__(self, model: Examined) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor) -> Tensor:
        logits_BTV = self.model.logits(self.model.hidden(ids_BT)[:, :-1]).float()
        return -logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]


GRAPHS: dict[str, type[Logits | Nats]] = {"logits": Logits, "nats": Nats}


def compilable(model: Examined, graph: str) -> Logits | Nats:
    """Returns the graph for compiled backends. Eager backends, and so the reference, keep the plain model."""
    # Models of other families offer no way to compute their last block in part.
    alone = graph == "logits" and hasattr(model, "hidden_at")
    return (LogitsAlone if alone else GRAPHS[graph])(model).eval()


class Float32Norm(nn.Module):
    """LayerNorm whose statistics stay in float32, whatever the surrounding type."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


def half_precision(model: Examined) -> Examined:
    """Returns a float16 copy with LayerNorm in float32 and every cast explicit.

    TensorRT 11 and TensorRT-RTX take the types from the graph ("strongly typed"); they have no precision flag any more.
    """
    model = copy.deepcopy(model).half()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    for name in norms:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Float32Norm(cast(nn.LayerNorm, model.get_submodule(name))))
    return model


def in_precision(model: Examined, precision: str) -> Examined:
    """Returns the model itself for fp32, else a copy in the precision: fp16 with LayerNorm in float32, or bf16."""
    if precision == "bf16":
        return copy.deepcopy(model).bfloat16()
    return half_precision(model) if precision == "fp16" else model


def export_program(model: Examined, graph: str, *, max_batch: int) -> torch.export.ExportedProgram:
    """Exports one of GRAPHS with a batch of 1 to `max_batch` and any number of positions, on the model's device."""
    context, device = model.config.context, model.embedding.weight.device
    # Engines are tuned for the example, and torch-tensorrt takes its profile only from this program. An example of
    # size 1 is specialised to a constant: right for the batch if the maximum is 1, never for the positions.
    ids = torch.zeros(max_batch, context, dtype=torch.int64, device=device)
    example = {"ids": ids, "positions": torch.tensor([0, context - 1], device=device)}
    shapes = {
        "ids": {0: torch.export.Dim("batch", min=1, max=max_batch)} if max_batch > 1 else None,
        "positions": {0: torch.export.Dim("positions", min=1, max=context)},
    }
    made = compilable(model, graph)
    with torch.no_grad(), quiet():
        return torch.export.export(
            made,
            tuple(example[name] for name in made.inputs),
            dynamic_shapes=tuple(shapes[name] for name in made.inputs),
            strict=False,
        )


def export_onnx(model: Examined, path: str | Path, graph: str, *, max_batch: int) -> None:
    """Writes a self-contained ONNX file with the graph's inputs and output by name; equal models give equal bytes."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    program = export_program(model, graph, max_batch=max(2, max_batch))  # the file's batch has a name, not a number
    inputs = GRAPHS[graph].inputs
    axes = {"ids": "batch", "positions": "positions"}  # their names in the file
    with torch.no_grad(), quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(inputs),
            output_names=[graph],
            dynamic_shapes=tuple({0: torch.export.Dim(axes[name])} for name in inputs),
        )
        # Replaces optimize=True, whose pattern search takes seconds and finds only what the engines fuse anyway.
        # Folding is needed: it turns SplitToSequence, which TensorRT refuses, into Split.
        fold_constants(exported.model)
        remove_unused_nodes(exported.model)
        ClearMetadataAndDocStringPass()(exported.model)  # stack traces with this machine's paths
    with atomic_path(path) as temporary:
        exported.save(temporary, external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences exporter messages irrelevant to this model: torchvision is absent, pytree APIs changed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
