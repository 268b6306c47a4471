"""Models with handwritten weights, so that the function of each head is known."""

import torch

from picollm.model.transformer import ModelConfig, Transformer

TOKENS = 32  # 31 words and, last, the separator
WIDTH, HEADS = 128, 2


def induction_circuit(vocab_size=TOKENS, context=64):
    """Two layers: L0H0 attends to the token before and writes it beside the own one; L1H0 attends where what was
    written equals the own token, and raises the logit of the token there. The other heads do nothing.

    The residual stream: 32 dimensions for the token, 32 for the token before, 32 for the prediction, and a constant.
    """
    config = ModelConfig(vocab_size, context, WIDTH, 2, HEADS, 8, 0.0, False, 1e8, context)
    model = Transformer(config).eval()
    K = WIDTH // HEADS
    token, before, output, constant = range(TOKENS), range(32, 64), range(64, 96), 96
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for block in model.blocks:
            block.norm_attention.weight.fill_(1)
            block.norm_attention.bias[constant] = 10
        model.norm.weight.fill_(1)
        for i in range(TOKENS):
            model.embedding.weight[i, token[i]] = 10
            model.head.weight[i, output[i]] = 1
        # qkv rows: queries of H0, H1, keys of H0, H1, values of H0, H1. The first half of a head's dimensions is
        # rotated with the second; the first pairs turn fast, the last so slowly that offsets don't show.
        q, k, v = 0, WIDTH, 2 * WIDTH
        frequency = 1e8 ** (-torch.arange(K // 2, dtype=torch.float64) / (K // 2))
        sharp = 4  # pairs, of 1 to .2 radians a position
        first, second = model.blocks
        for f in range(sharp):  # a query turned back by one position: the score is largest at offset 1
            first.attention.qkv.weight[q + f, constant] = float(torch.cos(-frequency[f]))
            first.attention.qkv.weight[q + f + K // 2, constant] = float(torch.sin(-frequency[f]))
            first.attention.qkv.weight[k + f, constant] = 10
        for i in range(TOKENS):
            first.attention.qkv.weight[v + i, token[i]] = 1
            first.attention.out.weight[before[i], i] = 2
            slow = 16 + i % 16 + K // 2 * (i // 16)
            second.attention.qkv.weight[q + slow, token[i]] = 5
            second.attention.qkv.weight[k + slow, before[i]] = 5
            second.attention.qkv.weight[v + i, token[i]] = 1
            second.attention.out.weight[output[i], i] = 5
    return model
