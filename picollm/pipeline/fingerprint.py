"""Which code a rule depends on: its script and, transitively, the picollm modules that it imports.

Left out is what can't change a result, so that an edit there makes nothing stale: what runs around a computation, and
imports for type checkers alone (`if TYPE_CHECKING:`), which never run.
File bytes and nothing else, so that DVC (which hashes the same files as deps) and Snakemake (which gets the fingerprint
as a param) see the same change, and a touch or a checkout back and forth is none.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from functools import cache
from pathlib import Path

# A job's wrapper and records, the text of its errors, its progress bar.
AROUND = ("picollm/pipeline/", "picollm/errors.py", "picollm/progress.py")
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # of a node of the syntax tree
# Two threads that parse at once end with a SystemError now and then in Python 3.11 (python/cpython#106905).
PARSING = threading.Lock()


@cache
def code_files(script: Path, root: Path) -> tuple[Path, ...]:
    """The script and every picollm module it reaches, relative to `root`, sorted. Empty `__init__.py` are left out."""
    found: set[Path] = set()
    queue = [script]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue += imported_modules(root / path, root)
    return tuple(sorted(found))


@cache
def imported_modules(path: Path, root: Path) -> tuple[Path, ...]:
    """picollm modules named by the import statements of a file that run, those inside functions included."""
    names: set[str] = set()
    with PARSING:
        queue: list[ast.AST] = [ast.parse(path.read_bytes())]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue += node.orelse
            continue
        for block in BLOCKS:  # statements alone: expressions are most of a file, and hold no import
            inside = getattr(node, block, None)
            queue += inside if isinstance(inside, list) else []
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {Path(*name.split(".")).with_suffix(".py") for name in names if name.startswith("picollm.")}
    return tuple(sorted(f for f in files if (root / f).is_file() and not f.as_posix().startswith(AROUND)))


def rule_code(rule: str, root: Path) -> tuple[Path, ...]:
    """The code files of a rule."""
    return code_files(Path("workflow_scripts") / f"{rule}.py", root)


def rule_fingerprint(rule: str, root: Path) -> str | None:
    """The fingerprint of a rule's present code; None where a file of it can't be read."""
    try:
        return fingerprint(rule_code(rule, root), root)
    except (OSError, SyntaxError):
        return None


def fingerprint(files: tuple[Path, ...], root: Path) -> str:
    """sha256 over names and bytes of the files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.as_posix()}\0{hashlib.sha256((root / file).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
