"""trt_compile: the trained model -> ONNX, a TensorRT engine, and the manifest that says what they are good for."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from picollm.data.files import sha256, write_json
from picollm.data.manifest import clear, describe
from picollm.engine.export import export_onnx, in_precision
from picollm.engine.manifest import FORMAT
from picollm.engine.tensorrt import RTX, TORCH, build_rtx_plan, build_torch_tensorrt, choose_target
from picollm.hardware import describe_hardware
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    cfg = snakemake.params.cfg["engine"]
    device = set_up(**snakemake.params.cfg["compute"])
    folder = Path(snakemake.output.manifest).parent
    clear(Path(snakemake.output.manifest), "model.*")

    model = load_model(snakemake.input.weights, snakemake.input.config)
    precision, batch = cfg["precision"], {"max_batch": cfg["max_batch"]}
    seconds = {}

    def timed(name: str, build, *inputs, **options) -> dict:
        start = time.perf_counter()
        built = build(*inputs, folder / name, **options)
        seconds[name] = round(time.perf_counter() - start, 2)
        logging.info("%s: %.1f s, %.1f MB", name, seconds[name], (folder / name).stat().st_size / 1e6)
        return built

    onnx = "model.fp32.onnx"  # what OpenVINO reads
    timed(onnx, export_onnx, model, **batch)
    target, engine, capabilities, built = choose_target(device), None, [], {}
    if target == TORCH:
        engine = f"model.{precision}.ep"
        capabilities = ["{}.{}".format(*torch.cuda.get_device_capability())]
        built = timed(engine, build_torch_tensorrt, model, precision=precision, **batch)
    elif target == RTX:
        engine = f"model.{precision}.engine"
        capabilities = cfg["compute_capabilities"]
        typed_onnx = f"model.{precision}.onnx"
        if typed_onnx != onnx:
            timed(typed_onnx, export_onnx, in_precision(model, precision), **batch)
        built = timed(engine, build_rtx_plan, folder / typed_onnx, compute_capabilities=capabilities,
                      context=model.config.context, **batch)  # fmt: skip

    else:
        target = f"none: {RTX} is not installed"
        logging.warning("no TensorRT engine, ONNX only: pip install %s and run trt_compile again", RTX)

    write_json(snakemake.output.manifest, {
        "format": FORMAT,
        "target": target,
        "engine": engine,
        "onnx": onnx,
        "precision": precision,
        "compute_capabilities": capabilities,
        "context": model.config.context,
        **batch,
        "checkpoint_sha256": sha256(snakemake.input.weights),
        "build_seconds": seconds,
        **built,
        "hardware": describe_hardware(device=device.type, threads=torch.get_num_threads()),
        "files": [describe(file) for file in sorted(folder.glob("model.*"))],
    })  # fmt: skip
