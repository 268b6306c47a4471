"""Receipts: each job writes what it read and what it wrote, as its last act.

    .snakemake/picollm/receipts/RULE.json

A job that was killed leaves none, and an output that was changed since has other bytes than its receipt says. So a
receipt is all that `picollm sync` needs to tell DVC of a run, and `picollm show` to tell where a file comes from.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.errors import PicollmError
from picollm.files import write_json
from picollm.pipeline.fingerprint import rule_fingerprint
from picollm.pipeline.locks import FOLDER

if TYPE_CHECKING:
    from picollm.pipeline.job import Rule

RECEIPTS = FOLDER / "receipts"
FORMAT = 1
TEMPORARY = ".snakemake/"  # outputs that Snakemake deletes after use


@dataclass(frozen=True)
class Receipt:
    """Paths are relative to the repository; an artefact of many files has all of them, its manifest among them."""

    rule: str
    code: str  # sha256 of the script and the modules it imports
    params: dict  # the sections of config.yaml that the rule got
    inputs: dict[str, str]  # {path: md5} as they were when the job began
    outputs: dict[str, str]  # {path: md5}
    seconds: float
    machine: dict[str, str]  # platform, cores, versions of packages
    locked: str  # sha256 of the stage's entry in dvc.lock when the job ended: while it is the same, the run is newer
    format: int = FORMAT

    def matches(self, root: Path, config: Mapping) -> bool:
        """Whether code, parameters, inputs and outputs are what lies here now; everything is hashed."""
        return (
            self.params == {section: config.get(section) for section in self.params}
            and self.code == rule_fingerprint(self.rule, root)
            and not differing(root, self.inputs | self.outputs)
            and set(self.outputs) == {file for path in self.outputs for file in files_of(root, artefact(path))}
        )


def artefact(path: str) -> str:
    """The path that DVC tracks for an output of Snakemake's: a manifest stands for its folder."""
    return str(Path(path).parent) if Path(path).name == "manifest.json" else path


def files_of(root: Path, path: str) -> list[str]:
    """The file itself, or every file in the folder; none where there is nothing."""
    top = root / path
    if not top.is_dir():
        return [path] if os.path.lexists(top) else []
    names = (os.path.join(where, name) for where, _, names in os.walk(top) for name in names)
    return sorted(os.path.relpath(name, root) for name in names)


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def differing(root: Path, files: Mapping[str, str]) -> list[str]:
    """Of {path: md5} the paths that are missing below `root` or have other bytes."""
    return [path for path, digest in files.items() if not (root / path).is_file() or md5(root / path) != digest]


def digests(paths: Iterable[str]) -> dict[str, str]:
    """{file: md5} of a job's inputs or outputs, except those that Snakemake deletes."""
    kept = [path for path in map(str, paths) if not path.startswith(TEMPORARY)]
    return {file: md5(Path(file)) for path in kept for file in files_of(Path(), artefact(path))}


def write(rule: Rule, inputs: dict[str, str], seconds: float) -> None:
    """`inputs`: what `digests` said of them when the job began."""
    outputs = digests(rule.outputs)
    if outputs:  # none of a helper's
        receipt = Receipt(
            rule.name, rule.code, dict(rule.cfg), inputs, outputs, round(seconds, 1), surroundings(),
            lock_entry(Path(), rule.name),
        )  # fmt: skip
        write_json(RECEIPTS / f"{rule.name}.json", asdict(receipt))


def lock_entry(root: Path, stage: str) -> str:
    """sha256 of the text of a stage's entry in dvc.lock; empty where it has none."""
    path = root / "dvc.lock"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    entry = re.search(rf"^  {re.escape(stage)}:\n((?:    .*\n?)*)", text, re.MULTILINE)
    return hashlib.sha256(entry[1].encode()).hexdigest() if entry else ""


def read(root: Path) -> dict[str, Receipt]:
    """{rule: its receipt}; one that is damaged or of another version counts as absent."""
    found = {}
    for path in sorted((root / RECEIPTS).glob("*.json")):
        with suppress(PicollmError):
            found[path.stem] = read_one(path)
    return found


def read_one(path: Path) -> Receipt:
    """Raises PicollmError where the file is damaged or of another version."""
    try:
        receipt = Receipt(**json.loads(path.read_text(encoding="utf-8")))
        tables = (receipt.params, receipt.inputs, receipt.outputs, receipt.machine)
        whole = all(isinstance(table, dict) for table in tables) and receipt.outputs
    except (OSError, ValueError, TypeError):
        raise PicollmError(f"{path} is damaged") from None
    if receipt.format != FORMAT:
        raise PicollmError(f"{path} is of another version")
    if not whole or receipt.rule != path.stem:
        raise PicollmError(f"{path} is damaged")
    return receipt


def surroundings() -> dict[str, str]:
    """Where the job ran, and with which of picollm's packages."""
    try:
        names = [re.split(r"[^\w.-]", requirement)[0] for requirement in metadata.requires("picollm") or []]
    except metadata.PackageNotFoundError:  # not installed, only on the path
        names = []
    found = {"platform": platform.platform(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    for name in sorted(set(names)):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
