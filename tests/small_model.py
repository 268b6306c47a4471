"""The untrained model that the tests of engines build and time."""

import torch

from picollm.model.transformer import ModelConfig, Transformer

CONTEXT, VOCAB, LAYERS, MAX_BATCH = 16, 500, 2, 4


def small_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(VOCAB, CONTEXT, 28, LAYERS, 7, 36, 0.0, True, 10000.0, 32)).eval()
