"""Reads a folder, a zip archive or a single file the same way, without unpacking an archive to disk."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, cast

from picollm.errors import PicollmError

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)  # raised by reading a damaged member


def find_files(path: Path) -> dict[str, Callable[[], BinaryIO]]:
    """Maps every file below a folder or in a zip archive, or the file itself, to a function that opens it as bytes.

    Names begin with `path`, for messages; hidden files are left out. Raises PicollmError if there is nothing, or the
    archive is damaged, encrypted, or names files outside itself.
    """
    if path.is_file() and path.suffix.lower() == ".zip":
        return zip_members(path)
    files = text_files(path)
    if not files and not path.is_dir():
        raise PicollmError(f"{path} does not exist: put the text there, or name another file or folder")
    return {file.as_posix(): partial(open, file, "rb") for file in files}


def text_files(path: Path) -> list[Path]:
    """Lists the file itself, or every file below a folder that is not hidden, in order.

    Links are followed, each folder once. Reading, the records of both tools and messages all use this list. It is empty
    if there is nothing.
    """
    if not path.is_dir():
        return [path] if path.is_file() else []
    names = [Path(folder, name) for folder, _, names in walk(path) for name in names if not hidden(PurePath(name))]
    return sorted(file for file in names if file.is_file())


def linked_folders(path: Path) -> list[Path]:
    """Returns the linked folders that `text_files` visits."""
    return sorted(
        Path(folder, name) for folder, names, _ in walk(path) for name in names if Path(folder, name).is_symlink()
    )


def walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks like `os.walk`, also into links, but into no folder twice and into no hidden folder."""
    seen = {os.path.realpath(path)}
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        targets = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = [name for name in folders if not hidden(PurePath(name)) and targets[name] not in seen]
        seen |= {targets[name] for name in folders}
        yield folder, folders, names


def hidden(path: PurePath) -> bool:
    """Returns True for files that an operating system leaves next to the data."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def zip_members(path: Path) -> dict[str, Callable[[], BinaryIO]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise PicollmError(f"{path} is not a complete zip archive ({error}): fetch it again") from None
    members = {}
    for member in archive.infolist():
        name = member.filename
        if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name:
            raise PicollmError(f"{path} names a file outside itself ({name!r}) and is not read: make a clean archive")
        if member.flag_bits & 1:
            raise PicollmError(f"{path}: {name} is encrypted: unpack it and give the folder")
        if not member.is_dir() and not hidden(PurePosixPath(name)):
            members[f"{path.as_posix()}/{name}"] = partial(open_member, archive, member)
    return members


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    return BufferedReader(cast(RawIOBase, archive.open(member)))  # iterating over a ZipExtFile's lines is slow
