"""Groups the original's claims by verdict: those about heads as state_findings decided, and those of loss and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from picollm.report.claims import (
    FAILED,
    HELD,
    INCOMPARABLE,
    UNTESTABLE,
    VERDICTS,
    DecidedClaim,
    claim,
)
from picollm.report.summary import tensorrt_status

if TYPE_CHECKING:
    from picollm.engine.shapes import BenchmarkReport
    from picollm.model.training_report import TrainingReport

ORIGINAL_SPEEDUP = 3.5  # TensorRT in FP16
ORIGINAL_LOADING = 0.15  # increase of the training throughput by pin_memory and workers


def board(claims: Sequence[DecidedClaim]) -> list[dict]:
    """Groups claims by verdict, in the order of VERDICTS, each with the id of its row in the chapter of claims."""
    numbered = [{**row, "id": f"claim-{number}"} for number, row in enumerate(claims)]
    return [
        {"verdict": verdict, "claims": [row for row in numbered if row["verdict"] == verdict]} for verdict in VERDICTS
    ]


def every_claim(c: Mapping[str, Any]) -> list[DecidedClaim]:
    """Returns all claims of the original that the reports `c` can decide, as rows of one table."""
    claims = list(c["findings"]["claims"]) if "findings" in c else []
    for name, test in (("training", loss_phases), ("benchmark", tensorrt), ("training", loading)):
        claims += [test(c[name])] if name in c else []
    return claims


def loss_phases(training: TrainingReport) -> DecidedClaim:
    reached = sum(1 for phase in training.get("phases") or [] if phase["tokens"])
    return row_of(
        "training",
        "the loss falls in three phases: 11 to 5.0, to 4.2, to about 3.9",
        "none: it is the training loss of another text, of 236 M tokens",
        INCOMPARABLE,
        because="another text, and another number of tokens",
        phases_reached=reached,
    )


def tensorrt(benchmark: BenchmarkReport) -> DecidedClaim:
    """Tests the claimed speed-up of 3.5 over eager fp32 at batch 1, by the interval of the medians' ratio."""
    text, test = f"TensorRT in FP16 is {ORIGINAL_SPEEDUP} times as fast", "the interval of the speed-up at batch 1"
    for row in benchmark["results"]:
        if row["backend"] == "tensorrt-fp16" and row["batch"] == 1 and "eager-fp32" in row.get("speedups", {}):
            speedup = row["speedups"]["eager-fp32"]
            below = FAILED if speedup["high"] < ORIGINAL_SPEEDUP else UNTESTABLE
            verdict = HELD if speedup["low"] >= ORIGINAL_SPEEDUP else below
            ratio, low, high = speedup["ratio"], speedup["low"], speedup["high"]
            return row_of("speed", text, test, verdict, ratio=ratio, low=low, high=high)
    why = tensorrt_status(benchmark)
    return row_of("speed", text, test, UNTESTABLE, because="batch 1 was not timed" if why == "measured" else why)


def loading(training: TrainingReport) -> DecidedClaim:
    text = "pin_memory and workers give 15 % more training throughput"
    test = "the share of a training step that waits for data bounds what better loading can give"
    if training["imported"]:
        return row_of("speed", text, test, UNTESTABLE, because="nothing was trained")
    most = 1 / (1 - training["data_wait_share"]) - 1
    return row_of("speed", text, test, FAILED if most < ORIGINAL_LOADING else UNTESTABLE, at_most=round(most, 6))


def row_of(
    section: str, text: str, test: str, verdict: str, because: str = "", **numbers: float | None
) -> DecidedClaim:
    return {**claim(section, text, test, verdict=verdict, because=because, **numbers), "q": None}
