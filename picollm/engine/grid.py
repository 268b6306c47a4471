"""Names of backends, outputs and batch sizes to build and time. Imports nothing heavy: the configuration reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RUNTIMES = {
    "eager": ("fp32", "tf32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "cudagraph": ("fp32", "bf16", "fp16"),
    "compile-cudagraph": ("fp32", "bf16", "fp16"),
    "aoti": ("fp32", "bf16", "fp16", "int8"),
    "aoti-b1": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8", "fp8"),
    "tensorrt-b1": ("fp16",),
}
ON_CPU = ("onnxruntime", "openvino")  # wherever the others run
BACKENDS = tuple(f"{runtime}-{precision}" for runtime, precisions in RUNTIMES.items() for precision in precisions)
REFERENCE = "eager-fp32"
AGAIN = " (again)"  # a backend's second copy, which differs from the first only by noise
BASELINES = (REFERENCE, "eager-bf16")  # always measured: a speed-up over float32 alone would look too good

# Maps each output to the graph of picollm.engine.export that computes it. last: logits of the last position; full: of
# all positions; loss: nats of each next token.
OUTPUTS = {"last": "logits", "full": "logits", "loss": "nats"}
# Not in the full grid: they are for one row, and slower than `aoti` for several (docs/benchmarks.md).
FULL_BACKENDS = tuple(name for name in BACKENDS if not name.startswith("aoti-b1-"))
SWEEP = (1, 2, 4, 8, 16, 32)
FULL_BATCHES = {"last": SWEEP, "full": (1, 8), "loss": (1, 8)}  # all logits of 32 rows: 2.5 GB at the original's size


def again(name: str) -> str:
    """Returns the name of a backend's second copy."""
    return f"{name}{AGAIN}"


@dataclass(frozen=True)
class Grid:
    """Backends in order, the batch sizes at which each output is timed, and the largest that engines accept.

    emulated: also build and time what the processor only emulates.
    """

    backends: tuple[str, ...]
    batches: Mapping[str, tuple[int, ...]]
    max_batch: int
    emulated: bool = False

    @property
    def largest(self) -> int:
        return max(max(batches) for batches in self.batches.values())

    @property
    def graphs(self) -> tuple[str, ...]:
        """Graphs to build; always with `logits`, which the gate reads."""
        return tuple(dict.fromkeys(["logits", *(OUTPUTS[output] for output in self.batches)]))


def grid(engine: Mapping, batches: Sequence[int] = (1,)) -> Grid:
    """Builds the grid from the configuration's section `engine`, and benchmark.batches."""
    if engine["grid"] == "full":
        return Grid(FULL_BACKENDS, FULL_BATCHES, max(SWEEP), engine["emulated"])
    names = tuple(dict.fromkeys([*BASELINES, *engine["backends"]]))
    cells = dict.fromkeys(engine["outputs"], tuple(dict.fromkeys(batches)))
    return Grid(names, cells, engine["max_batch"], engine["emulated"])


def runs_on_cpu(name: str) -> bool:
    return name.rpartition("-")[0] in ON_CPU


def result_key(row: Mapping) -> str:
    """Returns a result's name in flat metrics: backend and batch, and the output unless it is `last`."""
    output = row.get("output", "last")  # older reports have only this one
    return f"{row['backend'].replace('-', '_')}{'' if output == 'last' else f'_{output}'}_b{row['batch']}"
