"""git hooks that run `picollm sync` after a checkout and after a merge (and so after a pull)."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from picollm.errors import PicollmError
from picollm.pipeline.repository import git

MARK = "# installed by `picollm sync --install-hook`"
# git gives post-checkout a third argument, 0 where only files were checked out. Inside a rebase every step would sync.
HOOKS = {
    "post-checkout": '[ "$3" = 1 ] && [ -z "$GIT_REFLOG_ACTION" ] || exit 0',
    "post-merge": ":",
}


def install(root: Path) -> None:
    """Write both hooks. Raises PicollmError where one of somebody else's is there; nothing is written then."""
    folder = root / git(root, "rev-parse", "--git-path", "hooks").decode().strip()
    command = f"exec {shlex.quote(sys.executable)} -m picollm.cli sync"
    for name in HOOKS:
        hook = folder / name
        if hook.exists() and MARK not in hook.read_text():
            raise PicollmError(f"{hook} exists already: add this line to it by hand: {command}")
    folder.mkdir(exist_ok=True)
    for name, condition in HOOKS.items():
        (folder / name).write_text(f"#!/bin/sh\n{MARK}\n{condition}\n{command}\n")
        (folder / name).chmod(0o755)
