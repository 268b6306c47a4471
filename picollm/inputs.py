"""The files that a configuration names: the corpus and a trained model. Both tools must see an edit of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from picollm.data.archives import linked_folders, text_files
from picollm.errors import PicollmError
from picollm.model.folders import INDEX, is_foreign_folder, weight_files


def corpus_source(corpus: dict[str, Any]) -> str | None:
    """The file or folder of the `corpus` section that lies on this machine; None where there is none."""
    path = {"local": corpus["path"], "grammar": corpus["path"], "wikitext-103": corpus["hub"]}.get(corpus["source"])
    return path if path and (corpus["source"] != "wikitext-103" or Path(path).is_dir()) else None


def corpus_dependencies(corpus: dict[str, Any]) -> list[str]:
    """What DVC hashes of `corpus_source`: it, and each linked folder in it, as DVC follows no link on its way."""
    source = corpus_source(corpus)
    return [source, *map(str, linked_folders(Path(source)))] if source else []


def corpus_files(corpus: dict[str, Any]) -> list[str]:
    """The files that are read of `corpus_source`: both tools must see an edit of one.

    Raises PicollmError if a local corpus has none, or one has a name that the tools can't write down.
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
    """The files of model.checkpoint, for the same reason. Raises PicollmError if one is missing."""
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
                f"model.checkpoint = {folder}: {file} is missing; name a folder on this machine that has it "
                "(pytorch_model.bin is not read, nor is a name on a hub), or null to train a model"
            )
    return refuse_names("model.checkpoint", [str(file) for file in files])


def tokenizer_files(model: dict[str, Any]) -> list[str]:
    """tokenizer.json and config.json of a checkpoint of another family: its text is written in its own tokens."""
    folder = model["checkpoint"]
    if folder is None or not (Path(folder).is_dir() and is_foreign_folder(Path(folder))):
        return []
    return [str(Path(folder) / name) for name in ("tokenizer.json", "config.json")]


def seed_files(report: dict[str, Any]) -> list[str]:
    """The file of report.seeds. Raises PicollmError if it is missing."""
    path = report["seeds"]
    if path and not Path(path).is_file():
        raise PicollmError(f"report.seeds = {path}: no such file; `picollm seeds 3` writes one, or set it to null")
    return refuse_names("report.seeds", [path]) if path else []


def refuse_names(key: str, paths: list[str]) -> list[str]:
    """The paths. Raises PicollmError for the first that has another meaning in dvc.yaml or in a rule, or none."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise PicollmError(f"{key}: the name {path!r} is not UTF-8: rename it") from None
        if found := set(path) & set("{}$*?[]") or [c for c in path if not c.isprintable()]:
            raise PicollmError(f"{key}: the name {path!r} holds {', '.join(map(repr, sorted(found)))}: rename it")
    return paths
