"""The final norm as the vocabulary head sees it: a linear map, divided by one positive number at each position.

LayerNorm (picollm's own, GPT-2, GPT-NeoX, StableLM) subtracts the mean and divides by the deviation; RMSNorm (Llama,
Mistral, Qwen) divides by the root of the mean square, and Gemma's weight is added to 1.

Shape suffixes: D model width, leading axes anything.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def linear_part(norm: nn.Module, x_D: Tensor) -> Tensor:
    """Applies the norm to a part of the residual stream, [..., D], without the division and the bias."""
    if isinstance(norm, nn.LayerNorm):
        return (x_D - x_D.mean(-1, keepdim=True)) * norm.weight
    return x_D * gain(norm)


def divisor(norm: nn.Module, x_D: Tensor) -> Tensor:
    """Computes the norm's divisor, [...], for the complete residual stream x."""
    if isinstance(norm, nn.LayerNorm):
        return (x_D.var(-1, unbiased=False) + norm.eps).sqrt()
    return (x_D.square().mean(-1) + epsilon(norm)).sqrt()


def gain(norm: Any) -> Tensor:
    return 1 + norm.weight if type(norm).__name__ == "GemmaRMSNorm" else norm.weight


def epsilon(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
