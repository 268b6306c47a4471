"""git hooks that run `picollm sync` after a checkout and after a merge (and so after a pull)."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from picollm.errors import PicollmError
from picollm.pipeline.repository import git

MARK = "# installed by `picollm sync --install-hook`"
OURS = "[ -f Snakefile ] && [ -f picollm/pipeline/sync.py ] || exit 0"  # a branch may hold something else
# git gives post-checkout a third argument, 0 where only files were checked out. Inside a rebase every step would sync.
HOOKS = {
    "post-checkout": '[ "$3" = 1 ] && [ -z "$GIT_REFLOG_ACTION" ] || exit 0',
    "post-merge": ":",
}


def install(root: Path) -> None:
    """Write both hooks. Raises PicollmError, and writes nothing, where somebody else's hook is there, or where git is
    told to look for hooks in a folder outside this repository: those run in every other repository too."""
    folder = hooks_folder(root)
    command = f"exec {shlex.quote(sys.executable)} -m picollm.cli sync"
    for name in HOOKS:
        hook = folder / name
        if hook.exists() and MARK not in hook.read_text(errors="replace"):
            raise PicollmError(f"{hook} exists already: add this line to it by hand: {command}")
    folder.mkdir(exist_ok=True)
    for name, condition in HOOKS.items():
        (folder / name).write_text(f"#!/bin/sh\n{MARK}\n{OURS}\n{condition}\n{command}\n")
        (folder / name).chmod(0o755)


def hooks_folder(root: Path) -> Path:
    """Where git looks for this repository's hooks. Raises PicollmError where that is outside of it."""
    folder, own = (
        Path(root, os.fsdecode(git(root, "rev-parse", *arguments)).removesuffix("\n")).resolve()
        for arguments in (["--git-path", "hooks"], ["--git-common-dir"])
    )
    if not any(folder.is_relative_to(top) for top in (own, root.resolve())):
        mend = f"`git config core.hooksPath {shlex.quote(str(own / 'hooks'))}` gives this one hooks of its own instead"
        raise PicollmError(f"git takes its hooks from {folder}, for other repositories too: {mend}; then ask again")
    return folder
