"""`picollm verify`: workspace, manifests, dvc.lock and DVC's cache against each other; every difference is named.

`--fix` moves what is wrong to aside/ and puts the right bytes in its place, from the cache or from wherever they lie in
the workspace. It deletes nothing but Snakemake's stale locks, and what it can't mend stays a problem with its remedy.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from picollm.data.files import atomic_path
from picollm.errors import PicollmError
from picollm.pipeline import exclusive, sync
from picollm.pipeline.judgement import LOCKS, Look
from picollm.pipeline.objects import is_metric, object_path

HEADINGS = ("Damage", "Leftovers", "Settings", "Machine")
READ_ONLY = 0o444  # DVC takes it as the sign of a whole object


def verify(root: Path, fix: bool) -> int:
    """Print what is wrong, what is worth knowing and a verdict: 0 where all is proven, else 1. With `fix` mend first.

    Raises PicollmError where a run is at work, or where dvc.lock, dvc.yaml, config.yaml or a folder can't be used.
    """
    try:
        if fix:
            stale = sorted(root.glob(LOCKS))
            lock = exclusive.hold(root)  # noqa: F841  until the verdict
            done = [f"{path.relative_to(root)}: removed" for path in stale] + mend(Look(root))
            for line in ["Mended", *(f"  {line}" for line in done)] if done else []:
                print(line)
        else:
            exclusive.refuse_beside_a_run(root)
        before, start = exclusive.last_run(root), time.monotonic()
        look = Look(root)
        seconds = time.monotonic() - start
        if exclusive.last_run(root) != before:
            raise PicollmError("a run is at work here, or was meanwhile: verify when it has ended")
    except OSError as error:
        raise PicollmError(str(error)) from None
    show(look, seconds)
    return 1 if look.problems else 0


def show(look: Look, seconds: float) -> None:
    for heading in HEADINGS:
        lines = [f"{p.text}: {p.remedy}" if p.remedy else p.text for p in look.problems if p.heading == heading]
        lines += [text for where, text in look.notes if where == heading]
        for line in [heading, *(f"  {line}" for line in lines)] if lines else []:
            print(line)
    files, objects = look.of.values(), look.objects.values()
    size = sum(found.size for found in [*files, *objects]) / 1e9
    count, mended = len(look.problems), sum(not problem.remedy for problem in look.problems)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "all proven" if files else "nothing has run here yet"
    verdict += f"; `picollm verify --fix` mends {mended} of them" if mended else ""
    print(
        f"verify: {len(files)} files, {len(objects)} cache objects, {size:.1f} GB hashed in {seconds:.1f} s: {verdict}"
    )


# --- Mending


def mend(look: Look) -> list[str]:
    """Do what the look found to be safe; what was done, in lines."""
    root = look.root
    for oid in look.bad_objects:
        away = root / "aside" / time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime()) / object_path(Path("cache"), oid)
        away.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(object_path(look.cache, oid), away)  # the cache may lie on another disk
    for oid in look.put_back:
        place(look.have[oid], object_path(look.cache, oid), READ_ONLY)
    # A metric's right bytes may lie in a file that is moved now; all others are in the cache.
    sources = {
        file: look.source(file, oid).read_bytes() if is_metric(file) else object_path(look.cache, oid)
        for file, oid in look.restore.items()
    }
    sync.set_aside(root, look.aside)
    for file, source in sources.items():
        place(source, root / file)
    done = [f"{look.name(object_path(look.cache, oid))}: moved to aside/" for oid in look.bad_objects]
    done += [f"{owner}: put back into DVC's cache" for owner in look.put_back.values()]
    done += [f"{path}: moved to aside/" for path in look.aside if path not in look.restore]
    done += [f"{path}: restored" + ", the old file is in aside/" * (path in look.aside) for path in look.restore]
    if look.lock_is_sound and (look.aside or look.restore or look.unrecorded):
        try:
            sync.sync(root)
        except PicollmError as error:
            done.append(f"`picollm sync` failed: {error}")
    return done


def place(source: Path | bytes, target: Path, mode: int | None = None) -> None:
    """Give a file these bytes, whole or not at all."""
    with atomic_path(target) as temporary:
        if isinstance(source, bytes):
            temporary.write_bytes(source)
        else:
            shutil.copyfile(source, temporary)
    if mode is not None:
        os.chmod(target, mode)
