"""What lies in the workspace and, of dvc.lock's objects, in DVC's cache, all hashed: the facts that `verify` judges.

All of it is read, because nothing else sees all damage: DVC's state database takes a file of the old size and time
stamp for unchanged, and DVC hands out damaged objects of its cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from picollm.data.files import read_json
from picollm.data.manifest import entries
from picollm.errors import PicollmError
from picollm.pipeline import records
from picollm.pipeline.objects import files_of, object_path
from picollm.pipeline.repository import dvc_repo, git

FOLDERS = ("data", "reports")
THREADS = 4  # hashlib works without the interpreter's lock


@dataclass(frozen=True)
class Digest:
    """Hashes of one file, hexadecimal, and its size in bytes; or why it can't be read."""

    md5: str = ""
    sha256: str = ""
    size: int = 0
    error: str = ""


def digest(path: Path, with_sha256: bool = False) -> Digest:
    """One pass over the file for both hashes: DVC has md5, manifests hold sha256."""
    md5, sha256, size = hashlib.md5(), hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                size += len(block)
                md5.update(block)
                if with_sha256:
                    sha256.update(block)
    except OSError as error:
        return Digest(error=error.strerror or str(error))
    return Digest(md5.hexdigest(), sha256.hexdigest() if with_sha256 else "", size)


def files_below(top: Path) -> list[Path]:
    """The file itself, or every file in the folder, broken links included."""
    if not top.is_dir():
        return [top] if os.path.lexists(top) else []
    return sorted(Path(folder, name) for folder, _, names in os.walk(top) for name in names)


def git_files(root: Path, *arguments: str) -> set[str]:
    """The paths that `git ls-files` names; none where there is no git."""
    try:
        lines = os.fsdecode(git(root, "ls-files", "-z", *arguments)).split("\0")
    except PicollmError:
        return set()
    return {line.rpartition("\t")[2] for line in lines if line}


class Evidence:
    """Paths are relative to the repository, and those of a list below `files` sorted.

    files    {output of dvc.yaml: its present files}
    input_folders  {folder that people write: its present files, as far as DVC looks at them}
    of       {file: Digest} of these and of the inputs that dvc.lock names and no stage writes
    objects  {name, `.dir` included: Digest} of DVC's cache, as far as dvc.lock names them or `have` has their bytes
    have     {md5: where its bytes are} of everything in `of`, and of the folders' lists as DVC would write them
    claims   [(manifest, file, its entry)]
    """

    def __init__(self, root: Path) -> None:
        self.root, self.lock, self.table = root, records.read_lock(root), records.read_table(root)
        with dvc_repo(root) as repo:
            self.cache, self.link_types = Path(repo.cache.local.path), repo.config["cache"].get("type") or []
            self.input_folders = {
                path: sorted(self.name(Path(file)) for file in repo.dvcignore.find(repo.fs, str(root / path)))
                for path in self.table.sources
                if (root / path).is_dir()
            }
        self.partial = sorted(self.name(file) for top in FOLDERS for file in (root / top).rglob(".*.partial"))
        self.files = {
            out: [path for path in map(self.name, files_below(root / out)) if path not in self.partial]
            for out in self.table.maker
        }
        self.read_manifests()
        self.hash()

    def name(self, path: Path) -> str:
        """How the path is shown: relative to the repository where it lies inside."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def read_manifests(self) -> None:
        self.claims: list[tuple[str, str, dict]] = []
        self.illegible: list[str] = []  # manifests
        for out, files in self.files.items():
            manifest = f"{out}/manifest.json"
            if manifest in files:
                try:
                    self.claims += [
                        (manifest, f"{out}/{e['file']}", e) for e in entries(read_json(self.root / manifest))
                    ]
                except (PicollmError, OSError):
                    self.illegible.append(manifest)

    def hash(self) -> None:
        inputs = {dep["path"] for entry in self.lock.values() for dep in entry["deps"]} - self.table.maker.keys()
        inputs = {path for path in inputs if (self.root / path).is_file()}.union(*self.input_folders.values())
        paths = sorted({path for files in self.files.values() for path in files} | inputs)
        claimed = {file for _, file, _ in self.claims}
        outs = [out for entry in self.lock.values() for out in entry["outs"]]
        with ThreadPoolExecutor(THREADS) as pool:
            digests = pool.map(lambda path: digest(self.root / path, path in claimed), paths)
            self.of = dict(zip(paths, digests, strict=True))
            self.have: dict[str, Path | bytes] = {
                found.md5: self.root / path for path, found in self.of.items() if found.md5
            }
            self.have |= {self.version(out): self.listing(out) for out in self.files if (self.root / out).is_dir()}
            self.objects: dict[str, Digest] = {}
            self.hash_objects(pool, {out["md5"] for out in outs} | self.have.keys())
            folders = [out for out in outs if out["md5"].endswith(".dir") and self.sound(out["md5"])]
            self.hash_objects(pool, {oid for out in folders for oid in files_of(self.cache, out).values()})

    def hash_objects(self, pool: ThreadPoolExecutor, oids: set[str]) -> None:
        """Of these, what the cache has. The others are other versions, or of other projects that share it."""
        there = {oid: object_path(self.cache, oid) for oid in sorted(oids - self.objects.keys())}
        there = {oid: path for oid, path in there.items() if os.path.lexists(path)}
        self.objects |= zip(there, pool.map(digest, there.values()), strict=True)

    def listing(self, out: str) -> bytes:
        """The list of a folder's present files, byte for byte as DVC keeps it."""
        present = self.input_folders[out] if out in self.input_folders else self.files[out]
        files = [{"md5": self.of[path].md5, "relpath": path.removeprefix(f"{out}/")} for path in present]
        return json.dumps(sorted(files, key=lambda file: file["relpath"]), sort_keys=True).encode()

    def version(self, out: str) -> str:
        """The hash that dvc.lock would give an output's present bytes; empty where there are none."""
        if (self.root / out).is_dir():
            return hashlib.md5(self.listing(out)).hexdigest() + ".dir"
        return self.of[out].md5 if out in self.of else ""

    def size(self, out: str) -> int:
        return sum(self.of[path].size for path in self.files.get(out) or self.input_folders.get(out, [out]))

    def sound(self, oid: str) -> bool:
        """Whether the cache has the object, undamaged."""
        return oid in self.objects and self.objects[oid].md5 == oid.removesuffix(".dir")

    def source(self, path: str, oid: str) -> Path | bytes | None:
        """Where the bytes lie that a file must have: in the cache, or under another name."""
        return object_path(self.cache, oid) if self.sound(oid) else self.have.get(oid)

    def disproved(self, file: str, entry: dict) -> bool:
        """Whether the file is not what its manifest says."""
        found = self.of.get(file)
        return found is None or (found.size, found.sha256) != (entry["bytes"], entry["sha256"])
