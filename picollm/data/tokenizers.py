"""Tokenizers as objects, so that a sentence can be encoded for any model: GPT-2's, and any tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from picollm.data.tokenizer import END_OF_TEXT, FINGERPRINT, VOCAB_SIZE, encoding
from picollm.errors import PicollmError, one_line
from picollm.files import read_json, sha256


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer: `pieces(text)` gives ids and the characters [start, end) that each covers, `ids(text)` only the ids,
    faster; `start` is the id that precedes a text, `start_name` its name, `size` the number of ids; `name` and
    `fingerprint` identify the tokenizer in manifests."""

    pieces: Callable[[str], tuple[list[int], list[tuple[int, int]]]]
    ids: Callable[[str], NDArray[np.integer]]
    start: int
    start_name: str
    size: int
    name: str
    fingerprint: str


def gpt2() -> Tokenizer:
    bpe = encoding()
    pieces = by_bytes(bpe.encode_ordinary, bpe.decode_single_token_bytes)

    def ids(text: str) -> NDArray:
        return bpe.encode_to_numpy(text, disallowed_special=())

    return Tokenizer(pieces, ids, END_OF_TEXT, "<|endoftext|>", VOCAB_SIZE, "gpt2", FINGERPRINT)


def tokenizer_of(files: Sequence[str]) -> Tokenizer:
    """Loads the tokenizer of a checkpoint's files (picollm.inputs.tokenizer_files), or GPT-2's if there are none."""
    return of_folder(Path(files[0]).parent) if files else gpt2()


def by_bytes(
    encode: Callable[[str], list[int]], token_bytes: Callable[[int], bytes]
) -> Callable[[str], tuple[list[int], list[tuple[int, int]]]]:
    """Builds `pieces` from the UTF-8 bytes of each id. An id with part of a character covers all of it."""

    def pieces(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids = encode(text)
        character = np.repeat(np.arange(len(text)), [len(c.encode()) for c in text])  # character of each byte
        ends = np.cumsum([len(token_bytes(i)) for i in ids])
        starts = np.concatenate(([0], ends[:-1])).astype(int)
        return ids, [(int(character[a]), int(character[b - 1]) + 1) for a, b in zip(starts, ends, strict=True)]

    return pieces


def of_folder(folder: Path) -> Tokenizer:
    """Loads the tokenizer.json of a model's folder, with the start that its config names.

    Raises PicollmError if it is missing or can't be read, or if no token can precede a text.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise PicollmError(f"{folder} has no tokenizer.json: save it there (tokenizer.save_pretrained(FOLDER))")
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise PicollmError("tokenizer.json needs the package tokenizers: pip install -e '.[models]'") from None
    try:
        fast = Fast.from_file(str(file))
    except Exception as error:  # noqa: BLE001, the package raises plain Exception
        raise PicollmError(
            f"{file} can't be read ({one_line(error)}): save it again with tokenizer.save_pretrained(FOLDER)"
        ) from None
    fast.no_truncation()
    fast.no_padding()
    values = read_json(folder / "config.json")
    start = next((values[key] for key in ("bos_token_id", "eos_token_id") if isinstance(values.get(key), int)), None)
    if start is None:
        raise PicollmError(
            f"{folder}: config.json names neither bos_token_id nor eos_token_id; without a token before the text there "
            "is no sink to remove"
        )
    size = fast.get_vocab_size(with_added_tokens=True)

    def pieces(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = fast.encode(text, add_special_tokens=False)
        return list(encoded.ids), [(int(a), int(b)) for a, b in encoded.offsets]

    def ids(text: str) -> NDArray:
        return np.array(fast.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    name = fast.id_to_token(start) or f"⟨{start}⟩"
    return Tokenizer(pieces, ids, start, name, size, "tokenizer.json", sha256(file))
