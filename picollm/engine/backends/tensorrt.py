"""TensorRT backend, built by one of two compilers that share the exported graph:

without an NVIDIA GPU   TensorRT-RTX compiles the ONNX file ahead of time for named compute capabilities (Turing to
                        Blackwell RTX cards) into a plan that such a card finishes by JIT. It is built here, not run.
with one                torch-tensorrt compiles the torch.export program for that GPU into another one, `.trt.pt2`.

`tensorrt` takes any batch up to the largest and is tuned for that one, `tensorrt-b1` is tuned for one row.

The parts that need a GPU (running either, building the second) were never executed by us: they are written against
TensorRT-RTX 1.7 and torch-tensorrt 2.11 to 2.14, and a test checks them against those signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch

from picollm.engine.backends.backend import Backend, BuildContext, DeviceRun, LoadContext, differs, no_gpu
from picollm.engine.backends.pytorch import row_by_row
from picollm.engine.backends.tensorrt_rtx import build_plan, load_plan
from picollm.engine.export import GRAPHS, export_program, in_precision
from picollm.errors import PicollmError
from picollm.files import atomic_path
from picollm.hardware import describe_gpu, installed

RTX, TORCH = "tensorrt-rtx", "torch-tensorrt"  # targets, named after their packages
MODULES = {RTX: "tensorrt_rtx", TORCH: "torch_tensorrt"}
QUANTIZED = ("int8", "fp8")

# Keywords of torch_tensorrt.dynamo.compile. Precision comes only from the graph: since 2.13 `enabled_precisions` is
# silently ignored and gives a float32 engine.
FLAGS = {
    "require_full_compilation": True,  # raises if a part would be left to PyTorch, and timed as TensorRT
    "min_block_size": 1,
    "use_fast_partitioner": False,
    "optimization_level": 4,
    "disable_tf32": True,  # float32 means float32
    "attn_bias_is_causal": True,  # our only mask is the causal one
    "immutable_weights": True,
}


class TensorRt(Backend):
    runtime = "tensorrt"
    suffix: ClassVar[str] = ""  # part of its file names, before the last suffix

    def largest_batch(self, ctx: BuildContext) -> int:
        return ctx.max_batch

    def cannot_run(self, device: torch.device) -> str | None:
        return no_gpu(device)

    def cannot_build(self, device: torch.device) -> str | None:
        target = choose_target(device)
        if target is None:
            return f"{RTX} is not installed: pip install {RTX}"
        if self.precision in QUANTIZED and target == RTX:
            return f"{self.precision} is for an NVIDIA GPU with {TORCH}"
        if self.precision in QUANTIZED and not find_spec("modelopt"):
            return "NVIDIA's ModelOpt is not installed: pip install nvidia-modelopt"
        return None

    def build(self, ctx: BuildContext, graph: str) -> tuple[Path, dict]:
        profile = shapes(graph, ctx.model.config.context, self.largest_batch(ctx))
        # With a GPU the engine is built for it, not for those that the configuration names ahead of time.
        here = ctx.device.type == "cuda"
        capabilities = [this_gpu()] if here else ctx.capabilities
        if choose_target(ctx.device) == TORCH:
            path = ctx.path(graph, self.precision, f"{self.suffix}.trt.pt2")
            build_torch_tensorrt(ctx, graph, self.precision, path, profile)
            return path, {"target": TORCH, "compute_capabilities": capabilities, "profile": profile, "flags": FLAGS}
        path = ctx.path(graph, self.precision, f"{self.suffix}.plan")
        onnx = ctx.onnx(graph, self.precision)
        build_facts = build_plan(onnx, path, capabilities, profile)
        about = {"target": RTX, "from": onnx.name, "compute_capabilities": capabilities, "profile": profile}
        return path, about | build_facts

    def refuses(self, built: dict, device: torch.device) -> str | None:
        about = built["graphs"]["logits"]
        target, here = about["target"], this_gpu()
        if here not in about["compute_capabilities"]:
            built_for = ", ".join(about["compute_capabilities"])
            return f"the engine is for compute capability {built_for}, this GPU has {here}: run trt_compile here"
        if not find_spec(MODULES[target]):
            return f"the engine is {target}'s, which is not installed: pip install {target}"
        return differs(built["made_for"], versions(target))

    def made_for(self, device: torch.device) -> dict[str, object]:
        return versions(choose_target(device))

    def load(self, ctx: LoadContext, graph: str) -> DeviceRun:
        path = ctx.file(self.name, graph)
        if path.suffix == ".plan":
            return load_plan(path)
        torch_tensorrt = import_torch_tensorrt()
        torch_tensorrt.runtime.set_cudagraphs_mode(
            mode=True
        )  # of this process: one launch a call, recorded for each shape
        return DeviceRun(torch_tensorrt.load(str(path)).module(), ctx.device)


class TensorRtRow(TensorRt):
    """Engine for one row, so that batch 1 does not run one tuned for more; several rows run one by one."""

    runtime = "tensorrt-b1"
    suffix = ".b1"

    def largest_batch(self, ctx: BuildContext) -> int:
        return 1

    def load(self, ctx: LoadContext, graph: str) -> DeviceRun:
        return row_by_row(super().load(ctx, graph))


def this_gpu() -> str:
    """Returns the compute capability of the GPU that torch uses; "none" without one."""
    return (describe_gpu() or {"compute_capability": "none"})["compute_capability"]


def versions(target: str | None) -> dict[str, object]:
    """Returns the versions of the packages on which an engine depends; torch-tensorrt has two distributions."""
    packages = (RTX,) if target == RTX else (TORCH, "torch-tensorrt-rtx", "tensorrt", RTX, "torch")
    return {package: installed(package) for package in packages}


def choose_target(device: torch.device) -> str | None:
    """Chooses torch-tensorrt for this machine's GPU, else TensorRT-RTX ahead of time; None if neither is installed.

    Both are optional: they are proprietary, and the rest of the pipeline needs neither.
    """
    wanted = (TORCH, RTX) if device.type == "cuda" else (RTX,)
    return next((target for target in wanted if find_spec(MODULES[target])), None)


def shapes(graph: str, context: int, max_batch: int) -> dict[str, list[list[int]]]:
    """Returns each input's smallest, usual and largest shape: the engine's profile, outside which it refuses inputs.

    torch-tensorrt takes them from the exported program, whose example has the usual positions and rows of this profile.
    """
    known = {
        "ids": [[1, context], [max_batch, context], [max_batch, context]],
        "positions": [[1], [2], [context]],
    }
    return {name: known[name] for name in GRAPHS[graph].inputs}


def ranges(profile: Mapping[str, list[list[int]]]) -> list:
    """Converts a profile to torch-tensorrt's inputs."""
    torch_tensorrt = import_torch_tensorrt()
    return [
        torch_tensorrt.Input(min_shape=least, opt_shape=usual, max_shape=most, dtype=torch.int64, name=name)
        for name, (least, usual, most) in profile.items()
    ]


def build_torch_tensorrt(
    ctx: BuildContext, graph: str, precision: str, path: Path, profile: Mapping[str, list[list[int]]]
) -> None:
    """Compiles with torch-tensorrt for this machine's GPU and a profile {input: [min, opt, max]}; saves a program."""
    torch_tensorrt = import_torch_tensorrt()
    max_batch, inputs = profile["ids"][-1][0], ranges(profile)
    if precision in QUANTIZED:
        from picollm.engine.backends.modelopt import quantized_program

        program = quantized_program(ctx, graph, precision, max_batch)
    else:
        model = in_precision(ctx.model, precision).to(ctx.device)
        program = export_program(model, graph, max_batch=max_batch)
    compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, **FLAGS)
    engines = [name for name, _ in compiled.named_children() if name.startswith("_run_on_acc")]
    if len(engines) != 1:
        raise PicollmError(
            f"torch-tensorrt built {len(engines)} engines from the graph, not one: leave tensorrt out of "
            "engine.backends"
        )
    with atomic_path(path) as temporary:
        program = temporary.with_suffix(".pt2")  # the suffix that torch.export requires
        torch_tensorrt.save(compiled, str(program), output_format="exported_program", arg_inputs=inputs)
        program.rename(temporary)


def import_torch_tensorrt():
    try:
        import torch_tensorrt
    except ImportError as error:
        raise PicollmError(f"torch-tensorrt can't be loaded ({error}): pip install {TORCH}==2.13.0") from None
    return torch_tensorrt
