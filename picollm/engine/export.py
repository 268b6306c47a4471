"""A trained Transformer -> torch.export program -> ONNX file: the input of every compiled backend.

All backends compute the same thing: ids [B, T] int64 -> logits of the last position [B, V] float32, with T the model's
context (static: rotary tables become constants) and B dynamic. The last position is what a next-token service needs;
copying all T x V logits off the device would cost more than the model itself.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from picollm.data.files import atomic_path
from picollm.model.transformer import Transformer


class LastLogits(nn.Module):
    """ids [B, T] int64 -> logits of the last position [B, V] float32."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.model(ids_BT, last=True).float()


class Float32Norm(nn.Module):
    """A LayerNorm whose statistics stay in float32 whatever the type around it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


def half_precision(model: Transformer) -> Transformer:
    """A float16 copy with LayerNorm in float32, every cast explicit.

    TensorRT 11 and TensorRT-RTX take the types from the graph ("strongly typed"); there is no precision flag left.
    """
    model = copy.deepcopy(model).half()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    for name in norms:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Float32Norm(model.get_submodule(name)))
    return model


def in_precision(model: Transformer, precision: str) -> Transformer:
    return half_precision(model) if precision == "fp16" else model


def export_program(model: Transformer, *, max_batch: int) -> torch.export.ExportedProgram:
    """LastLogits as a graph with a dynamic batch of 1 to `max_batch`, on the model's device."""
    # An example batch of 1 would be specialised to a constant.
    ids = torch.zeros(2, model.config.context, dtype=torch.int64, device=model.embedding.weight.device)
    batch = torch.export.Dim("batch", min=1, max=max(2, max_batch))
    with torch.no_grad(), quiet():
        return torch.export.export(LastLogits(model).eval(), (ids,), dynamic_shapes=({0: batch},), strict=False)


def export_onnx(model: Transformer, path: str | Path, *, max_batch: int) -> None:
    """Write a self-contained ONNX file, input `ids`, output `logits`; equal models give equal bytes."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    program = export_program(model, max_batch=max_batch)
    with torch.no_grad(), quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=["ids"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),  # the axis's name in the file
        )
        # In place of optimize=True, whose search for patterns takes seconds and finds what the engines fuse anyway.
        # Folding is needed: it makes Split of SplitToSequence, which TensorRT refuses.
        fold_constants(exported.model)
        remove_unused_nodes(exported.model)
        ClearMetadataAndDocStringPass()(exported.model)  # stack traces with this machine's paths
    with atomic_path(path) as temporary:
        exported.save(temporary, external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports what has nothing to do with this model: torchvision is absent, pytree APIs changed."""
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
