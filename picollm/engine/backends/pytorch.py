"""PyTorch's own runtimes: eager, torch.compile, a CUDA graph, and AOTInductor's compiled package."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from picollm.engine.backends.backend import Backend, BuildContext, DeviceRun, LoadContext, no_gpu
from picollm.engine.backends.int8_linear import with_int8_products
from picollm.engine.export import GRAPHS, compilable, export_program, in_precision, quiet
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import atomic_path
from picollm.hardware import cxx_compiler, describe_cpu, describe_gpu, has_amx, no_compiler
from picollm.precision import emulated_bf16

RECOMPILE_LIMIT = 128
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def tf32(allowed: bool):
    """Allows float32 products on a GPU's tensor cores with 10 bits of mantissa, or only exact ones."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class Eager(Backend):
    """The checkpoint as PyTorch runs it. fp32 is the reference for all others; TF32 is a separate backend."""

    runtime = "eager"
    builds = False

    def cannot_run(self, device: torch.device) -> str | None:
        return no_gpu(device) if self.precision in ("tf32", "fp16") else None

    def load(self, ctx: LoadContext, graph: str) -> DeviceRun:
        module = self.module(ctx, graph)

        def exactly(*inputs: Tensor) -> Tensor:
            with tf32(self.precision == "tf32"):
                return module(*inputs)

        return DeviceRun(exactly, ctx.device)

    def module(self, ctx: LoadContext, graph: str) -> nn.Module:
        model = copy.deepcopy(ctx.model).to(ctx.device, DTYPES[self.precision])
        return GRAPHS[graph](model).eval()


class Compiled(Eager):
    """torch.compile. It compiles at the first call with each shape, that is, in the gate or during warm-up."""

    runtime = "compile"
    mode: ClassVar[str | None] = None

    def cannot_run(self, device: torch.device) -> str | None:
        return no_compiler(device.type) or super().cannot_run(device)

    def module(self, ctx: LoadContext, graph: str) -> nn.Module:
        # Every shape of every precision counts towards one limit, beyond which it would silently run eagerly.
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        model = copy.deepcopy(ctx.model).to(ctx.device, DTYPES[self.precision])
        compiled = torch.compile(compilable(model, graph), dynamic=False, fullgraph=True, mode=self.mode)
        return cast(nn.Module, compiled)


class CudaGraph(Eager):
    """Eager kernels, recorded once per shape and launched together. Never executed by us: no GPU was available."""

    runtime = "cudagraph"

    def cannot_run(self, device: torch.device) -> str | None:
        return no_gpu(device)

    def load(self, ctx: LoadContext, graph: str) -> DeviceRun:
        module, recorded = self.module(ctx, graph), {}

        def replay(*inputs: Tensor) -> Tensor:
            shape = tuple(x.shape for x in inputs)
            if shape not in recorded:
                recorded[shape] = record(module, [x.clone() for x in inputs])
            cuda_graph, held, output = recorded[shape]
            for x, fresh in zip(held, inputs, strict=True):
                x.copy_(fresh)
            cuda_graph.replay()
            return output

        return DeviceRun(replay, ctx.device)


class CompiledGraph(CudaGraph):
    """torch.compile's kernels, the fastest of those it tries, in a CUDA graph: PyTorch's fastest option."""

    runtime = "compile-cudagraph"

    def cannot_run(self, device: torch.device) -> str | None:
        return super().cannot_run(device) or Tuned(self.precision).cannot_run(device)

    def module(self, ctx: LoadContext, graph: str) -> nn.Module:
        return Tuned(self.precision).module(ctx, graph)


class Tuned(Compiled):
    """torch.compile's tuned kernels without its own CUDA graphs, which copy every answer."""

    mode = "max-autotune-no-cudagraphs"


def record(module: nn.Module, held: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
    """Records a CUDA graph; returns it, the tensors that it reads and the one that it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate and choose kernels at first use, which can't be recorded
        for _ in range(3):
            module(*held)
    torch.cuda.current_stream().wait_stream(side)
    cuda_graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(cuda_graph):
        output = module(*held)
    return cuda_graph, held, output


class AotInductor(Backend):
    """AOTInductor: the graph compiled ahead of time into a package (.pt2) that runs without the Python part."""

    runtime = "aoti"
    suffix: ClassVar[str] = ""  # part of its file names, before the last suffix
    own_products: ClassVar[bool] = False  # Inductor's matrix products instead of the library's; in int8 always

    def cannot_run(self, device: torch.device) -> str | None:
        if self.precision == "int8":
            return None if device.type == "cpu" and has_amx() else "it needs a processor with AMX, for int8 products"
        return no_gpu(device) if self.precision == "fp16" else None

    def emulated(self, device: torch.device) -> str | None:
        # Around the int8 products everything is bf16.
        return emulated_bf16(device.type) if self.precision == "int8" else super().emulated(device)

    def cannot_build(self, device: torch.device) -> str | None:
        if cxx_compiler() is None:
            return "no C++ compiler"
        return no_compiler(device.type) or self.cannot_run(device)

    def made_for(self, device: torch.device) -> dict[str, object]:
        gpu = describe_gpu() if device.type == "cuda" else None
        # Inductor compiles for the present instruction set or GPU.
        made = {"torch": torch.__version__, "device": device.type}
        return made | ({"compute_capability": gpu["compute_capability"]} if gpu else {"isa": describe_cpu()["isa"]})

    def build(self, ctx: BuildContext, graph: str) -> tuple[Path, dict]:
        path = ctx.path(graph, self.precision, f"{self.suffix}.pt2")
        int8 = self.precision == "int8"
        model = with_int8_products(in_precision(ctx.model, "bf16")) if int8 else in_precision(ctx.model, self.precision)
        program = without_assertions(export_program(model.to(ctx.device), graph, max_batch=self.largest_batch(ctx)))
        # With gradients enabled, Inductor ignores `freezing` without a word.
        with atomic_path(path) as temporary, quiet(), torch.no_grad():
            package = temporary.with_suffix(".pt2")  # the suffix that Inductor requires
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=self.options(ctx.device)
            )
            package.rename(temporary)
        return path, {}

    def largest_batch(self, ctx: BuildContext) -> int:
        return ctx.max_batch

    def options(self, device: torch.device) -> dict[str, object]:
        """Returns the Inductor options that differ from its defaults.

        Inductor's own matrix products, with weights laid out for them. Without AMX, and in float32, the library's
        products are candidates too: there they are often twice as fast. With AMX they are not, because Inductor times
        each alone, where the library's look faster than in the model.
        """
        if not (self.own_products or self.precision == "int8"):
            return {}
        options: dict[str, object] = {"max_autotune": True}
        if device.type == "cpu":
            alone = has_amx() and self.precision != "fp32"
            options |= {"freezing": True, "max_autotune_gemm_backends": "CPP" if alone else "CPP,ATEN"}
        return options

    def load(self, ctx: LoadContext, graph: str) -> DeviceRun:
        path = ctx.file(self.name, graph)
        try:
            package = torch._inductor.aoti_load_package(str(path))
        except RuntimeError as error:
            raise PicollmError(
                f"AOTInductor can't load {path} ({one_line(error)[:300]}): {rerun('trt_compile')}"
            ) from None
        return DeviceRun(package, ctx.device)


def without_assertions(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Removes checks of types, which count as further readers of a tensor and so prevent Inductor's fusions."""
    nodes = program.graph_module.graph
    for node in list(nodes.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            nodes.erase_node(node)
    program.graph_module.recompile()
    return program


class AotInductorRow(AotInductor):
    """AOTInductor for one row, with Inductor's own matrix products; several rows run one by one.

    For more rows they are slower than the library's, which `AotInductor` calls.
    """

    runtime = "aoti-b1"
    suffix = ".b1"
    own_products = True

    def largest_batch(self, ctx: BuildContext) -> int:
        return 1

    def load(self, ctx: LoadContext, graph: str) -> DeviceRun:
        return row_by_row(super().load(ctx, graph))


def row_by_row(run: DeviceRun) -> DeviceRun:
    """Adapts a run that takes one row to any number of rows."""

    def each(ids: Tensor, *more: Tensor) -> Tensor:
        if len(ids) == 1:
            return run.call(ids, *more)
        return torch.cat([run.call(ids[i : i + 1], *more) for i in range(len(ids))])

    return DeviceRun(each, run.device)
