"""ONNX Runtime on the CPU: the exported graph, or its weights as int8 with dynamically quantized activations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from picollm.engine.backends.backend import Backend, BuildContext, LoadContext, Run
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import atomic_path

if TYPE_CHECKING:
    from onnx import GraphProto


class OnnxRuntime(Backend):
    runtime = "onnxruntime"

    def cannot_run(self, device: torch.device) -> str | None:
        return None if find_spec("onnxruntime") else "ONNX Runtime is not installed: pip install onnxruntime"

    def build(self, ctx: BuildContext, graph: str) -> tuple[Path, dict]:
        float_onnx = ctx.onnx(graph, "fp32")
        if self.precision == "fp32":
            return float_onnx, {}
        return quantize(float_onnx, ctx.path(graph, "int8", ".onnx"))

    def load(self, ctx: LoadContext, graph: str) -> Run:
        return load_onnx(ctx.file(self.name, graph), ctx.threads)


def quantize(float_onnx: Path, path: Path) -> tuple[Path, dict]:
    """Quantizes to dynamic int8: one scale per output channel of a weight, one per activation tensor at run time.

    The vocabulary head and the embedding stay one matrix: the quantizer handles only constants, and the exported head
    is the embedding transposed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(float_onnx)
    embedding = head_as_constant(model.graph)
    with atomic_path(path) as temporary, silence():
        quantize_dynamic(
            model, temporary, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
        )
        if embedding:
            model = onnx.load(temporary)
            embed_from_head(model.graph, embedding)
            onnx.save(model, temporary)
    return path, {"from": float_onnx.name, "per_channel": True, "activations": "dynamic"}


@contextmanager
def silence() -> Iterator[None]:
    """Silences the root logger: the quantizer warns of each product of two activations, which it can't quantize."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


HEAD = "head"


def head_as_constant(graph: GraphProto) -> str | None:
    """Replaces the transposed embedding by its own constant, [D, V]; returns the embedding's name, None if untied."""
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in looked_up & weights.keys():
            head = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[0]]).T)
            graph.initializer.append(numpy_helper.from_array(head, HEAD))
            for user in graph.node:
                user.input[:] = [HEAD if name == node.output[0] else name for name in user.input]
            graph.node.remove(node)
            return node.input[0]
    return None


def embed_from_head(graph: GraphProto, embedding: str) -> None:
    """Looks tokens up in the columns of the quantized head, [D, V] int8 with a scale each; drops the embedding."""
    from onnx import TensorProto, helper

    at, lookup = next((i, node) for i, node in enumerate(graph.node) if node.input and node.input[0] == embedding)
    ids, embedded = lookup.input[1], lookup.output[0]
    nodes = [
        helper.make_node("Gather", [f"{HEAD}_quantized", ids], ["columns"], axis=1),  # [D, B, T]
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[1, 2, 0]),
        helper.make_node("Cast", ["rows"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{HEAD}_scale", ids], ["scales"], axis=0),
        helper.make_node("Unsqueeze", ["scales", "last_axis"], ["scale"]),
        helper.make_node("Mul", ["whole", "scale"], [embedded]),
    ]
    graph.node.remove(lookup)
    for offset, node in enumerate(nodes):
        graph.node.insert(at + offset, node)
    graph.initializer.append(helper.make_tensor("last_axis", TensorProto.INT64, [1], [-1]))
    graph.initializer.remove(next(weight for weight in graph.initializer if weight.name == embedding))


def load_onnx(path: Path, threads: int) -> Run:
    """Loads any exported graph on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no other base class
        raise PicollmError(
            f"ONNX Runtime can't read {path} ({one_line(error)[:300]}): {rerun('trt_compile')}"
        ) from None
    names = [x.name for x in session.get_inputs()]

    def run(*inputs: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])

    return run
