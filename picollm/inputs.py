"""Files named by a configuration: the corpus and a trained model. Both tools must detect an edit of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from picollm.data.archives import linked_folders, text_files
from picollm.errors import PicollmError
from picollm.model.folders import INDEX, is_foreign_folder, weight_files


def corpus_source(corpus: dict[str, Any]) -> str | None:
    """Returns the local file or folder of the `corpus` section, or None."""
    path = {"local": corpus["path"], "grammar": corpus["path"], "wikitext-103": corpus["hub"]}.get(corpus["source"])
    return path if path and (corpus["source"] != "wikitext-103" or Path(path).is_dir()) else None


def corpus_dependencies(corpus: dict[str, Any]) -> list[str]:
    """Returns the paths that DVC hashes: `corpus_source` and each linked folder in it, since DVC follows no links."""
    source = corpus_source(corpus)
    return [source, *map(str, linked_folders(Path(source)))] if source else []


def corpus_files(corpus: dict[str, Any]) -> list[str]:
    """Returns the files that are read from `corpus_source`: both tools must detect an edit of one.

    Raises PicollmError if a local corpus has none, or a file name can't be represented by the tools.
    """
    source = corpus_source(corpus)
    if source is None:
        return []
    one = corpus["source"] == "grammar" and Path(source).is_file()
    files = [source] if one else [str(file) for file in text_files(Path(source))]
    if not files:
        raise PicollmError(
            f"corpus.path = {source}: no such file or folder, or an empty one; put the text there or change "
            "corpus.source"
        )
    return refuse_names("corpus.path", [source, *files])[1:]


def model_files(model: dict[str, Any]) -> list[str]:
    """Returns the files of model.checkpoint, whose edits both tools must see. Raises PicollmError for a missing one."""
    if model["checkpoint"] is None:
        return []
    folder = Path(model["checkpoint"])
    if folder.is_dir() and is_foreign_folder(folder):
        index = [folder / INDEX] if not (folder / "model.safetensors").is_file() else []
        files = [*weight_files(folder), *index, folder / "config.json", folder / "tokenizer.json"]
    else:
        files = [folder / name for name in ("model.safetensors", "config.json")]
    for file in files:
        if not file.is_file():
            raise PicollmError(
                f"model.checkpoint = {folder}: {file} is missing; give a folder on this machine that has it "
                "(pytorch_model.bin and hub names are not supported), or null to train a model"
            )
    return refuse_names("model.checkpoint", [str(file) for file in files])


def tokenizer_files(model: dict[str, Any]) -> list[str]:
    """Returns tokenizer.json and config.json of another family's checkpoint, whose own tokenizer encodes the text."""
    folder = model["checkpoint"]
    if folder is None or not (Path(folder).is_dir() and is_foreign_folder(Path(folder))):
        return []
    return [str(Path(folder) / name) for name in ("tokenizer.json", "config.json")]


def seed_files(report: dict[str, Any]) -> list[str]:
    """Returns the file of report.seeds. Raises PicollmError if it is missing."""
    path = report["seeds"]
    if path and not Path(path).is_file():
        raise PicollmError(f"report.seeds = {path}: no such file; `picollm seeds 3` writes one, or set it to null")
    return refuse_names("report.seeds", [path]) if path else []


def refuse_names(key: str, paths: list[str]) -> list[str]:
    """Returns the paths. Raises PicollmError for the first that is not UTF-8 or is special in dvc.yaml or a rule."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise PicollmError(f"{key}: the name {path!r} is not UTF-8: rename it") from None
        if forbidden := set(path) & set("{}$*?[]") or [c for c in path if not c.isprintable()]:
            raise PicollmError(f"{key}: the name {path!r} holds {', '.join(map(repr, sorted(forbidden)))}: rename it")
    return paths
