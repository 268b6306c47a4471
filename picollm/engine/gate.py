"""The accuracy gate: no backend is timed before its answers were compared with float32 on validation rows.

Compared are the logits at the last position of each row. KL divergence is the sharp test: it grows with the square of
the logits' error, and sums over the whole vocabulary. The loss is that of one token a row, so its mean carries a
standard error, which the gate allows for; and one row may change its top token, however few rows there are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import log_softmax

from picollm.engine.backends import Run


@dataclass(frozen=True)
class Limits:
    """mean_kl: nats, KL(reference || backend). loss: |mean difference|, nats. top1: share of rows that agree."""

    mean_kl: float
    loss: float
    top1: float


LIMITS = {
    "fp32": Limits(mean_kl=1e-7, loss=1e-4, top1=0.999),
    "fp16": Limits(mean_kl=1e-4, loss=1e-3, top1=0.995),  # 1e-3 nats: 0.1 % of perplexity
    "bf16": Limits(mean_kl=1e-3, loss=1e-3, top1=0.995),  # 8 times as coarse as fp16; KL: squared
}


def last_logits(run: Run, rows: np.ndarray, batch: int) -> np.ndarray:
    """Logits [rows, V] float32 of rows [rows, T + 1], computed `batch` at a time; the last token is the target."""
    ids = rows[:, :-1].astype(np.int64)
    # A backend may return its own buffer and overwrite it: copy.
    return np.concatenate([np.array(run(ids[i : i + batch])) for i in range(0, len(ids), batch)])


def compare(reference: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> dict:
    """Accuracy of logits [rows, V] against the reference's; targets [rows] are the true next tokens. Nats."""
    p, q = log_softmax(reference.astype(np.float64), -1), log_softmax(logits.astype(np.float64), -1)
    kl = (np.exp(p) * (p - q)).sum(-1)
    index = np.arange(len(targets))
    loss = p[index, targets] - q[index, targets]
    return {
        "rows": len(targets),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).mean()),
        "loss_difference": float(loss.mean()),
        "loss_standard_error": float(loss.std(ddof=1) / np.sqrt(len(loss))) if len(loss) > 1 else 0.0,
        "max_logit_error": float(np.abs(reference - logits).max()),
    }


def judge(found: dict, precision: str) -> list[str]:
    """The limits that are exceeded, in words; empty means passed. NaN passes nothing."""
    limits = LIMITS[precision]
    loss_limit = limits.loss + 2 * found["loss_standard_error"]
    changed, allowed = (1 - found["top1_agreement"]) * found["rows"], max(1.0, (1 - limits.top1) * found["rows"])
    checks = [
        (found["mean_kl"] <= limits.mean_kl, f"mean KL {found['mean_kl']:.2g} > {limits.mean_kl:g} nats"),
        (
            abs(found["loss_difference"]) <= loss_limit,
            f"|loss difference| {abs(found['loss_difference']):.2g} > {loss_limit:.2g} nats",
        ),
        (changed <= allowed + 1e-9, f"top token changed in {changed:.0f} of {found['rows']} rows"),
    ]
    return [words for passed, words in checks if not passed]


def thresholds() -> dict[str, dict]:
    return {precision: asdict(limits) for precision, limits in LIMITS.items()}
