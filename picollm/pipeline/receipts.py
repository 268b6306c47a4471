"""Writes and reads receipts: as its last act, each job records what it read and what it wrote.

    .snakemake/picollm/receipts/RULE.json

A killed job leaves no receipt, and an output that was changed later has other bytes than its receipt says. So a receipt
is all that `picollm sync` needs to record a run in DVC, and `picollm show` to show a file's origin.
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
    """A job's receipt. Paths are relative to the repository; all files of an artefact are listed, with its manifest."""

    rule: str
    code: str  # sha256 of the script and the modules it imports
    params: dict  # the sections of config.yaml that the rule read
    inputs: dict[str, str]  # {path: md5} when the job began
    outputs: dict[str, str]  # {path: md5}
    seconds: float
    machine: dict[str, str]  # platform, cores, versions of packages
    locked: str  # sha256 of the stage's entry in dvc.lock when the job ended: as long as it is equal, the run is newer
    format: int = FORMAT

    def matches(self, root: Path, config: Mapping) -> bool:
        """Returns True if code, parameters, inputs and outputs equal the current ones; hashes everything."""
        return (
            self.params == {section: config.get(section) for section in self.params}
            and self.code == rule_fingerprint(self.rule, root)
            and not differing(root, self.inputs | self.outputs)
            and set(self.outputs) == {file for path in self.outputs for file in files_of(root, artefact(path))}
        )


def artefact(path: str) -> str:
    """Returns the path that DVC tracks for one of Snakemake's outputs: a manifest stands for its folder."""
    return str(Path(path).parent) if Path(path).name == "manifest.json" else path


def files_of(root: Path, path: str) -> list[str]:
    """Lists the file itself, or every file in the folder; empty if the path does not exist."""
    top = root / path
    if not top.is_dir():
        return [path] if os.path.lexists(top) else []
    names = (os.path.join(where, name) for where, _, names in os.walk(top) for name in names)
    return sorted(os.path.relpath(name, root) for name in names)


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def differing(root: Path, files: Mapping[str, str]) -> list[str]:
    """Returns the paths of {path: md5} that are missing below `root` or have other bytes."""
    return [path for path, digest in files.items() if not (root / path).is_file() or md5(root / path) != digest]


def digests(paths: Iterable[str]) -> dict[str, str]:
    """Hashes a job's inputs or outputs, except those that Snakemake deletes, into {file: md5}."""
    kept = [path for path in map(str, paths) if not path.startswith(TEMPORARY)]
    return {file: md5(Path(file)) for path in kept for file in files_of(Path(), artefact(path))}


def write(rule: Rule, inputs: dict[str, str], seconds: float) -> None:
    """Writes the receipt. `inputs`: their `digests` when the job began."""
    outputs = digests(rule.outputs)
    if outputs:  # a helper rule has none
        receipt = Receipt(
            rule.name, rule.code, dict(rule.cfg), inputs, outputs, round(seconds, 1), surroundings(),
            lock_entry(Path(), rule.name),
        )  # fmt: skip
        write_json(RECEIPTS / f"{rule.name}.json", asdict(receipt))


def lock_entry(root: Path, stage: str) -> str:
    """Returns the sha256 of the text of a stage's entry in dvc.lock; empty if there is none."""
    path = root / "dvc.lock"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    entry = re.search(rf"^  {re.escape(stage)}:\n((?:    .*\n?)*)", text, re.MULTILINE)
    return hashlib.sha256(entry[1].encode()).hexdigest() if entry else ""


def read(root: Path) -> dict[str, Receipt]:
    """Reads {rule: its receipt}; a receipt that is damaged or of another version counts as absent."""
    receipts = {}
    for path in sorted((root / RECEIPTS).glob("*.json")):
        with suppress(PicollmError):
            receipts[path.stem] = read_one(path)
    return receipts


def read_one(path: Path) -> Receipt:
    """Reads one receipt. Raises PicollmError if the file is damaged or of another version."""
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
    """Returns the platform, the number of cores, and the versions of Python and of picollm's packages."""
    try:
        names = [re.split(r"[^\w.-]", requirement)[0] for requirement in metadata.requires("picollm") or []]
    except metadata.PackageNotFoundError:  # only on the path, not installed
        names = []
    versions = {"platform": platform.platform(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    for name in sorted(set(names)):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
