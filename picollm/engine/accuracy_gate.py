"""Accuracy gate: compares each backend's answers with float32's on validation rows, before anything is timed.

Every position of every row is compared. KL divergence is the sharpest test: it grows with the square of the logits'
error and sums over the whole vocabulary. Limits follow MLPerf Inference's classes, 99.9 % of float32's quality for the
float types and 99 % for int8 and fp8 (mlcommons/inference_policies, inference_rules.adoc).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from picollm.engine.timing import SECONDS, SLACK, OverBudget
from picollm.progress import progress

LOGITS_BYTES = 64 * 2**20  # of float32 logits at once
PROMPT_SHARE = 2  # greedy text begins after 1 / PROMPT_SHARE of a row
GREEDY_TOKENS = 64  # at most
LEVEL = 0.1  # nats
TOKENS_AT_ONCE = 64

Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids [B, T], positions [P] -> logits [B, P, V] float32


@dataclass(frozen=True)
class Limits:
    """mean_kl: nats, KL(reference || backend). perplexity: |relative difference|. top1: a share, see `per_token`."""

    mean_kl: float
    perplexity: float
    top1: float


LIMITS = {
    "fp32": Limits(mean_kl=1e-7, perplexity=1e-4, top1=0.999),
    "tf32": Limits(mean_kl=1e-4, perplexity=1e-3, top1=0.995),  # the same mantissa as fp16
    "fp16": Limits(mean_kl=1e-4, perplexity=1e-3, top1=0.995),
    "bf16": Limits(mean_kl=1e-3, perplexity=1e-3, top1=0.995),  # 8 times as coarse as fp16; KL: squared
    "int8": Limits(mean_kl=1e-2, perplexity=1e-2, top1=0.97),
    "fp8": Limits(mean_kl=1e-2, perplexity=1e-2, top1=0.97),
}


def compare_all(
    answers: Mapping[str, Answer], reference: str, rows: np.ndarray, batch: int
) -> tuple[dict[str, dict], dict[str, Exception]]:
    """Returns {backend: its `summary`} on rows [n, T + 1], `batch` at a time, including the reference; and
    {backend: exception} of those that failed.

    The reference's logits are computed once per batch, and every backend is compared with them immediately. A backend
    is left out (OverBudget) if its second batch (the first may compile) shows that all batches would take more than
    both SLACK times the reference's time and SECONDS.
    """
    compared_parts: dict[str, list[Tensor]] = {name: [] for name in answers}
    failed: dict[str, Exception] = {}
    positions = np.arange(rows.shape[1] - 1)
    starts = range(0, len(rows), batch)
    for number, start in enumerate(progress(starts, desc="accuracy gate", unit=" batches")):
        part = rows[start : start + batch].astype(np.int64)
        ids, targets = np.ascontiguousarray(part[:, :-1]), torch.from_numpy(part[:, 1:]).flatten()
        # A copy: a backend may return its own buffer and overwrite it.
        begin = time.perf_counter()
        expected = torch.from_numpy(np.array(answers[reference](ids, positions))).flatten(0, 1)
        budget = max(SECONDS, SLACK * (time.perf_counter() - begin) * len(starts))
        for name in list(compared_parts):
            try:
                logits = expected
                if name != reference:
                    begin = time.perf_counter()
                    logits = torch.from_numpy(answers[name](ids, positions)).flatten(0, 1)
                    takes = (call := time.perf_counter() - begin) * len(starts)
                    if number == 1 and takes > budget:
                        raise OverBudget(call, takes, budget)
                compared_parts[name].append(per_token(expected, logits, targets))
            except Exception as error:  # runtimes raise any type
                failed[name] = error.with_traceback(None)
                del compared_parts[name]
    return {name: summary(torch.cat(parts, 1).double().numpy()) for name, parts in compared_parts.items()}, failed


def rows_at_once(rows: np.ndarray, vocabulary: int, at_most: int) -> int:
    per_row = (rows.shape[1] - 1) * vocabulary * 4
    return int(np.clip(LOGITS_BYTES // per_row, 1, at_most))


def per_token(expected: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Logits [N, V] each, targets [N] -> [5, N]: reference's nats, backend's nats, KL, same top token, level.

    Level: the backend's top token is the reference's best or within LEVEL of it. The order of two such tokens depends
    more on how flat the model's answers are than on the arithmetic.
    """
    # A few tokens at a time: ten such arrays of whole batches would take gigabytes, and leave the cache.
    parts = zip(*(x.split(TOKENS_AT_ONCE) for x in (expected, logits, targets)), strict=True)
    return torch.cat([compared(p.log_softmax(-1), q.log_softmax(-1), t) for p, q, t in parts], 1)


def compared(expected: Tensor, given: Tensor, targets: Tensor) -> Tensor:
    """Computes `per_token` from log-probabilities."""
    nats, reference = (-x.gather(-1, targets[:, None])[:, 0] for x in (given, expected))
    best, top = expected.max(-1), given.argmax(-1, keepdim=True)
    same = top[:, 0] == best.indices
    level = best.values - expected.gather(-1, top)[:, 0] <= LEVEL
    return torch.stack([reference, nats, divergence(expected, given), same.float(), level.float()])


def mean_kl(expected: np.ndarray, logits: np.ndarray) -> float:
    """Computes the mean KL in nats over all positions of two sets of logits [..., V]."""
    parts = zip(*(torch.from_numpy(x).flatten(0, -2).split(TOKENS_AT_ONCE) for x in (expected, logits)), strict=True)
    return torch.cat([divergence(p.log_softmax(-1), q.log_softmax(-1)) for p, q in parts]).mean().item()


def divergence(expected: Tensor, given: Tensor) -> Tensor:
    """Computes the KL, [N], of log-probabilities [N, V] each."""
    # p (d + exp(-d) - 1) sums to the KL of normalised distributions, has no negative terms, and the float32 rounding
    # of the normalisers enters only squared.
    d = expected - given
    return (expected.exp() * (torch.expm1(-d) + d)).sum(-1)


def summary(measured: np.ndarray) -> dict:
    """Summarises [5, N] from `per_token`. Perplexities are per token; differences relative to the reference's."""
    reference, nats, kl, same, level = measured
    more = nats - reference
    error = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else 0.0
    return {
        "tokens": len(nats),
        "perplexity": float(np.exp(nats.mean())),
        "perplexity_difference": float(np.expm1(more.mean())),
        "standard_error": float(error),  # of the mean difference in nats, about equal to that of the line above
        "mean_kl": float(kl.mean()),
        "p99_kl": float(np.percentile(kl, 99)),
        "max_kl": float(kl.max()),
        "top1_agreement": float(same.mean()),
        "top1_level": float(level.mean()),
    }


def judge(measured: dict, precision: str) -> list[str]:
    """Lists the exceeded limits in words; empty means passed. NaN never passes.

    The perplexity's limit allows for two standard errors, and one token may always change, however few there are.
    """
    limits, tokens = LIMITS[precision], measured["tokens"]
    allowed_difference = limits.perplexity + 2 * measured["standard_error"]
    changed, allowed = (1 - measured["top1_level"]) * tokens, max(1.0, (1 - limits.top1) * tokens)
    checks = [
        (measured["mean_kl"] <= limits.mean_kl, f"mean KL {measured['mean_kl']:.2g} > {limits.mean_kl:g} nats"),
        (
            abs(measured["perplexity_difference"]) <= allowed_difference,
            f"|perplexity difference| {abs(measured['perplexity_difference']):.2%} > {allowed_difference:.2%}",
        ),
        (changed <= allowed + 1e-9, f"top token more than {LEVEL} nats off in {changed:.0f} of {tokens}"),
    ]
    return [words for passed, words in checks if not passed]


def greedy(answer: Answer, rows: np.ndarray) -> np.ndarray:
    """Generates the likeliest continuation of each row's first half, [n, tokens], token by token.

    The rest of the row is overwritten step by step: the model is causal, so later tokens have no effect.
    """
    ids = np.array(rows[:, :-1], dtype=np.int64)
    context = ids.shape[1]
    begin = context // PROMPT_SHARE
    end = min(context, begin + GREEDY_TOKENS)
    for at in range(begin, end):
        ids[:, at] = answer(ids, np.array([at - 1]))[:, 0].argmax(-1)
    return ids[:, begin:end]


def greedy_match(expected: np.ndarray, generated: np.ndarray) -> float:
    """Computes the mean share of the text before the first difference: after one, the two texts diverge."""
    same = np.logical_and.accumulate(expected == generated, axis=1)
    return float(same.mean())


def thresholds() -> dict[str, dict]:
    return {precision: asdict(limits) for precision, limits in LIMITS.items()}
