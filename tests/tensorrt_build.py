"""`make test-tensorrt`: checks, without a GPU, that torch-tensorrt builds the whole decoder as one network.

torch-tensorrt asks the GPU for its properties, which a machine without one can't answer: these queries are answered for
an RTX 4090 here (compute capability 8.9). Everything else is real: the export, the converters, TensorRT-RTX's builder.
The engine can't be loaded without a device, and is not run.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from picollm.engine.backends.tensorrt import FLAGS, ranges, shapes
from picollm.engine.backends.tensorrt_rtx import layer_types
from picollm.engine.export import export_program, half_precision
from picollm.model.transformer import ModelConfig, Transformer

CAPABILITY, MEMORY, MAX_BATCH = (8, 9), 24 * 2**30, 8
ORIGINAL = ModelConfig(50257, 384, 448, 8, 7, 592, 0.0, True, 10000.0, 512)


class NoDevice(Exception):
    """Raised when the engine is built and would be loaded next."""


def main() -> None:
    if torch.cuda.is_available():
        sys.exit("test-tensorrt: this machine has a GPU: `make gpu` runs the real thing")
    properties = SimpleNamespace(major=8, minor=9, name="NVIDIA GeForce RTX 4090", total_memory=MEMORY)
    answers = {
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: CAPABILITY,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
    }
    torch.manual_seed(0)
    model = half_precision(Transformer(ORIGINAL).eval())
    engines, networks = [], []
    logging.disable(logging.ERROR)  # it reports that nothing was loaded

    class Runtime:
        """Receives the serialized engine at the point where a device would load it."""

        def __init__(self, *_: object) -> None: ...

        def deserialize_cuda_engine(self, engine: object) -> None:
            engines.append(bytes(engine))
            raise NoDevice

    with mock.patch.multiple(torch.cuda, **answers):
        import torch_tensorrt
        from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

        construct = interpreter.TRTInterpreter._construct_trt_network_def

        def constructed(self: object) -> None:
            construct(self)
            net = self.ctx.net  # the order of its inputs differs between the two profiles
            networks.append(([tuple(net.get_input(i).shape) for i in range(net.num_inputs)], layer_types(net)))

        for largest in (MAX_BATCH, 1):
            program = export_program(model, "logits", max_batch=largest)
            inputs = ranges(shapes("logits", ORIGINAL.context, largest))
            with (
                mock.patch.object(interpreter.TRTInterpreter, "_construct_trt_network_def", constructed),
                mock.patch.object(interpreter.trt, "Runtime", Runtime),
                suppress(NoDevice),
            ):
                torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, **FLAGS)
    weights = sum(p.numel() for p in model.parameters()) * 2
    versions = f"torch-tensorrt {torch_tensorrt.__version__}, torch {torch.__version__}"
    if len(networks) != 2 or len(engines) != 2:
        sys.exit(f"test-tensorrt: {len(networks)} networks and {len(engines)} engines for two profiles, not one each")
    print(f"{versions} (float16 weights: {weights / 1e6:.1f} MB)")
    for rows, (inputs, layers), engine in zip((-1, 1), networks, engines, strict=True):
        print(f"inputs {inputs}: one network, {len(engine) / 1e6:.1f} MB; {layers}")
        if (rows, ORIGINAL.context) not in inputs:
            sys.exit(f"test-tensorrt: no input has the shape {(rows, ORIGINAL.context)} of ids (-1: any batch)")
        if len(engine) < weights or "FLOAT" in layers["MATRIX_MULTIPLY"]:
            sys.exit("test-tensorrt: the engine is smaller than its weights, or multiplies in float32")


if __name__ == "__main__":
    main()
