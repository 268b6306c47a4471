"""Finds the code a rule depends on: its script and, transitively, the picollm modules that it imports.

Code that can't change a result is left out, so that editing it makes nothing stale: code that runs around a
computation, and imports for type checkers only (`if TYPE_CHECKING:`), which never run.
The fingerprint covers file bytes only, so that DVC (which hashes the same files as deps) and Snakemake (which gets the
fingerprint as a param) see the same changes, and a touch or a checkout back and forth is not a change.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from functools import cache
from pathlib import Path

# A job's wrapper and records, its error messages, its progress bar.
AROUND = ("picollm/pipeline/", "picollm/errors.py", "picollm/progress.py")
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # attributes of syntax tree nodes that hold statements
# Two threads that parse at the same time occasionally raise SystemError in Python 3.11 (python/cpython#106905).
PARSING = threading.Lock()


@cache
def code_files(script: Path, root: Path) -> tuple[Path, ...]:
    """Returns the script and every picollm module it reaches, relative to `root`, sorted; no empty `__init__.py`."""
    reached: set[Path] = set()
    queue = [script]
    while queue:
        path = queue.pop()
        if path not in reached:
            reached.add(path)
            queue += imported_modules(root / path, root)
    return tuple(sorted(reached))


@cache
def imported_modules(path: Path, root: Path) -> tuple[Path, ...]:
    """Returns the picollm modules that a file's import statements name, including those inside functions."""
    names: set[str] = set()
    with PARSING:
        queue: list[ast.AST] = [ast.parse(path.read_bytes())]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue += node.orelse
            continue
        for block in BLOCKS:  # statements only: expressions are most of a file and contain no imports
            inside = getattr(node, block, None)
            queue += inside if isinstance(inside, list) else []
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {Path(*name.split(".")).with_suffix(".py") for name in names if name.startswith("picollm.")}
    return tuple(sorted(f for f in files if (root / f).is_file() and not f.as_posix().startswith(AROUND)))


def rule_code(rule: str, root: Path) -> tuple[Path, ...]:
    """Returns the code files of a rule."""
    return code_files(Path("workflow_scripts") / f"{rule}.py", root)


def rule_fingerprint(rule: str, root: Path) -> str | None:
    """Returns the fingerprint of a rule's current code; None if one of its files can't be read."""
    try:
        return fingerprint(rule_code(rule, root), root)
    except (OSError, SyntaxError):
        return None


def fingerprint(files: tuple[Path, ...], root: Path) -> str:
    """Hashes names and bytes of the files with sha256."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.as_posix()}\0{hashlib.sha256((root / file).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
