"""Int8 for AOTInductor: linear layers whose product is int8 x int8 -> int32, with scales found at run time.

Weights have one scale per output column, inputs one per token, both symmetric, so nothing is calibrated. Inductor turns
the layer's expression into its own int8 matrix product with everything around it fused, if the weights are constants
(`freezing`) and nothing else reads the int32 result; the test of the built package shows that it did.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from picollm.model.foreign import Examined

LARGEST = 127  # of int8; -128 is not used, so that the range is symmetric
SMALLEST = 1e-12  # of a scale or a magnitude; keeps rows of zeros finite


class Int8Linear(nn.Module):
    """x [..., in] -> x @ weight.T + bias [..., out], in the type of x. weight: [out, in]; bias: [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale_O = (weight.detach().float().abs().amax(1) / LARGEST).clamp(min=SMALLEST)
        quantized_OI = (weight.detach().float() / scale_O[:, None]).round().to(torch.int8)
        self.register_buffer("quantized_IO", quantized_OI.T.contiguous())
        self.register_buffer("scale_O", scale_O.to(weight.dtype))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        rows_NI = x.flatten(0, -2)
        largest_N1 = rows_NI.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST)
        quantized_NI = (rows_NI.float() * (LARGEST / largest_N1)).round().to(torch.int8)
        product_NO = torch._int_mm(quantized_NI, cast(Tensor, self.quantized_IO))
        # Inductor's pattern needs this order: the product's type, the rows' scale, the columns' scale.
        result_NO = product_NO.to(x.dtype) * (largest_N1 * (1 / LARGEST)).to(x.dtype) * self.scale_O
        if self.bias is not None:
            result_NO = result_NO + self.bias
        return result_NO.unflatten(0, x.shape[:-1])


def with_int8_products(model: Examined) -> Examined:
    """Returns a copy with `Int8Linear` for every linear layer and the head; a tied embedding stays as it is."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        weight = weight_of(module)
        if weight is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Int8Linear(weight, cast(Tensor | None, module.bias)))
    return model


def weight_of(module: nn.Module) -> Tensor | None:
    """Returns the weight of a linear layer, [out, in], or None; GPT-2's in transformers, Conv1D, stores [in, out]."""
    if isinstance(module, nn.Linear):
        return module.weight
    return cast(Tensor, module.weight).T if type(module).__name__ == "Conv1D" else None
