"""`picollm data inspect` and `picollm data verify`: describes packed tokens and checks that they are consistent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from picollm.data.articles import SPLITS, ArticleFile
from picollm.data.loading import open_column, open_manifest
from picollm.data.packing import Split, TokensManifest
from picollm.data.tokenizer import FINGERPRINT, encoding
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import sha256
from picollm.manifest import entries, verified

FORMS = "a manifest.json or its folder, a shard (.arrow), a file of document ends, or a corpus (.parquet)"
SHOWN = 3  # sample rows or articles
WIDTH = 100  # characters shown of each


def inspect(path: Path) -> str:
    """Describes a file, with decoded samples. Raises PicollmError if it is missing, damaged or of another kind."""
    path = manifest_of(path)
    if not path.exists():
        raise PicollmError(f"{path} does not exist: give {FORMS}")
    if path.name == "manifest.json":
        return "\n".join(manifest_lines(path))
    if path.suffix == ".parquet":
        return "\n".join(corpus_lines(path))
    if path.suffix == ".arrow":
        return "\n".join(column_lines(path))
    raise PicollmError(f"{path} can't be shown: give {FORMS}")


def manifest_of(path: Path) -> Path:
    """Returns the manifest of a folder; any other path unchanged."""
    return path / "manifest.json" if path.is_dir() else path


def manifest_lines(path: Path) -> Iterator[str]:
    manifest = open_manifest(path)
    yield f"{path}: {manifest['tokenizer']} tokens in rows of {manifest['context']} + 1"
    for split, entry in manifest["splits"].items():
        shards = entry["shards"]
        yield f"  {split}: {entry['articles']:,} articles, {entry['words']:,} words, {entry['bytes']:,} bytes of text"
        yield f"    {entry['tokens']:,} tokens in {entry['rows']:,} rows, the last {entry['dropped_tokens']} dropped"
        yield f"    {len(shards)} shard{'s' * (len(shards) > 1)}, {sum(s['bytes'] for s in shards) / 1e6:,.1f} MB"
        yield f"    from a corpus of sha256 {entry['source_sha256']}"


def corpus_lines(path: Path) -> Iterator[str]:
    articles = ArticleFile(path)
    counts = ", ".join(f"{count:,} {unit}" for unit, count in articles.counts.items())
    yield f"{path}: {counts} in {articles.groups} row groups"
    for article, _ in zip(articles, range(SHOWN), strict=False):
        yield f"  {article.title}: {cut(article.text)}"


def column_lines(path: Path) -> Iterator[str]:
    try:
        values, about = open_column(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise PicollmError(f"{path} is damaged ({one_line(error)}): {rerun('tokenize_pack')}") from None
    details = ", ".join(f"{key} {value}" for key, value in about.items() if key != "tokenizer")
    if "context" not in about:
        yield f"{path}: the ends of {len(values):,} documents ({details})"
        yield f"  {', '.join(map(str, values[:SHOWN]))}, ..., {values[-1]}"
        return
    rows = values.reshape(-1, int(about["context"]) + 1)
    yield f"{path}: {len(rows):,} rows ({details})"
    for number in np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int):
        ids = rows[number].tolist()  # of another tokenizer, the ids themselves are shown
        shown = encoding().decode(ids) if about["tokenizer"] == FINGERPRINT else " ".join(map(str, ids))
        yield f"  row {number}: {cut(shown)}"


def cut(text: str) -> str:
    line = text.replace("\n", "⏎")
    return line if len(line) <= WIDTH else f"{line[:WIDTH]}…"


def verify(path: Path) -> tuple[list[str], str]:
    """Returns all problems of packed tokens and a summary; `path` is their manifest or folder.

    Every file is hashed; then rows are compared with their neighbours, the document ends and the counts. Raises
    PicollmError if there is no manifest.
    """
    manifest_path = manifest_of(path)
    if manifest_path.is_file() and manifest_path.suffix != ".json":
        raise PicollmError(f"{path} is not a manifest: give the folder of packed tokens, or its manifest.json")
    manifest = open_manifest(manifest_path)
    problems = unlisted_files(manifest, manifest_path)
    damaged = set()
    for entry in entries(manifest):
        try:
            verified(manifest_path, entry, "tokenize_pack")
        except PicollmError as error:
            problems.append(str(error))
            damaged.add(entry["file"])
    for split, packed in manifest["splits"].items():
        source = manifest_path.parents[1] / "corpus" / f"{split}.parquet"
        if source.exists() and sha256(source) != packed["source_sha256"]:
            problems.append(f"{split}: {source} is not the corpus that was tokenized: {rerun('tokenize_pack')}")
        if not damaged & {entry["file"] for entry in entries(packed)}:
            problems += [f"{split}: {problem}" for problem in inconsistencies(manifest_path.parent, manifest, packed)]
    splits = manifest["splits"]
    totals = [
        ", ".join(f"{splits[name][unit]:,} {name}" for name in SPLITS if name in splits) for unit in ("tokens", "rows")
    ]
    return problems, f"tokens: {totals[0]}; rows: {totals[1]}"


def unlisted_files(manifest: TokensManifest, manifest_path: Path) -> list[str]:
    known = {manifest_path.name, *(entry["file"] for entry in entries(manifest))}
    strange = sorted(path.name for path in manifest_path.parent.iterdir() if path.name not in known)
    return [f"{manifest_path.parent / name}: the manifest does not name it: move it away" for name in strange]


def inconsistencies(folder: Path, manifest: TokensManifest, packed: Split) -> Iterator[str]:
    """Yields contradictions between files that are all unchanged since they were written."""
    shards, first_row, context = [], 0, manifest["context"]
    for shard in packed["shards"]:
        values, about = open_column(folder / shard["file"])
        if int(about["first_row"]) != first_row or int(about["context"]) != context:
            yield f"{shard['file']} is not the shard of row {first_row}"
        shards.append(values.reshape(-1, context + 1))
        first_row += shard["rows"]
    if [len(shard) for shard in shards] != [shard["rows"] for shard in packed["shards"]] or first_row != packed["rows"]:
        yield "the shards' numbers of rows differ from those in the manifest"
        return
    if packed["tokens"] != packed["rows"] * context + 1 + packed["dropped_tokens"]:
        yield "tokens, rows and dropped tokens do not add up"
    previous, first, breaks = shards[0][0, :1], 0, []
    for shard in shards:
        if shard.max() >= manifest["vocab_size"]:
            yield f"the token {shard.max()} is not in the vocabulary"
        starts, ends = shard[:, 0], shard[:, -1]
        if (starts != np.concatenate([previous, ends[:-1]])).any():
            yield "a row does not begin with the last token of the previous one"
        breaks.append(np.flatnonzero(shard[:, :-1].ravel() == manifest["end"]) + first)
        previous, first = ends[-1:], first + len(shard) * context
    doc_ends, _ = open_column(folder / packed["doc_ends"]["file"])
    if len(doc_ends) != packed["articles"] or (np.diff(doc_ends.astype(np.int64)) <= 0).any():
        yield "there is not one document end for each article, in order"
        return
    within = doc_ends[doc_ends <= first]  # the others are at the last token or in the dropped ones
    if not np.array_equal(np.concatenate(breaks) + 1, within):
        yield "the document ends are not at the rows' <|endoftext|>"
