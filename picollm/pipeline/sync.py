"""Brings the data, dvc.lock and Snakemake's records to one state: `picollm track` and `picollm sync`.

DVC decides: what `dvc status` calls unchanged is current, and what it calls changed is stale, with everything that
depends on it. Before that, runs that receipts prove and DVC has not seen are recorded; Snakemake's records follow last.

    record      a receipt matches the files, but dvc.lock has no such run          -> dvc commit
    restore     only files differ from dvc.lock, and DVC's cache has them          -> dvc checkout
    set aside   stale, and Snakemake does not notice                               -> moved to aside/TIME/
    touch       everything else                                                    -> snakemake --touch
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dvc.repo import Repo, lock_repo

from picollm.errors import PicollmError
from picollm.files import write_bytes
from picollm.inputs import corpus_files
from picollm.pipeline import receipts, seal
from picollm.pipeline.graph import SNAKEMAKE, Change, Graph, call, changes, planned, read_lock
from picollm.pipeline.receipts import differing, files_of, md5
from picollm.pipeline.repository import (
    METADATA,
    dvc_repo,
    is_metric,
    known_to_snakemake,
    locked_files,
    object_path,
)
from picollm.yaml12 import read_yaml

if TYPE_CHECKING:
    from dvc.stage import PipelineStage


def say(message: str) -> None:
    print(f"picollm: {message}", file=sys.stderr)


class State:
    """The repository as DVC and the receipts see it; `look` asks DVC again."""

    def __init__(self, root: Path, repo: Repo) -> None:
        self.root, self.repo = root, repo
        self.graph = Graph(root)
        self.config: dict = read_yaml(root / "config.yaml")
        self.receipts = receipts.read(root)
        self.cache = Path(repo.cache.local.path)
        self.look()

    def look(self) -> None:
        self.lock = read_lock(self.root)  # first, so that damage is reported by our message, not by DVC's
        self.changed: dict[str, Change] = changes(self.repo.status(), self.graph)
        self.proven = cache(self._proven)

    def _proven(self, stage: str) -> bool:
        """Returns True if the stage's receipt matches the current files."""
        receipt = self.receipts.get(stage)
        return receipt is not None and receipt.matches(self.root, self.config) and self.same_sources(stage)

    def same_sources(self, stage: str) -> bool:
        """Returns True if the run had exactly the current inputs that no stage writes: a corpus may have a new file."""
        made = {file for file in self.receipts[stage].inputs if self.made(file)}
        now = {file for path in self.graph.sources(stage) for file in self.source_files(path)}
        return self.receipts[stage].inputs.keys() - made == now

    def made(self, file: str) -> bool:
        return any(path in self.graph.maker for path in (file, *map(str, Path(file).parents)))

    def source_files(self, path: str) -> list[str]:
        return corpus_files(self.config["corpus"]) if (self.root / path).is_dir() else [path]

    def newer_than_lock(self, stage: str) -> bool:
        """Returns True if the stage ran after its entry in dvc.lock was written or checked out."""
        return self.receipts[stage].locked == receipts.lock_entry(self.root, stage)

    def target(self, out: str) -> str:
        """Returns Snakemake's name for an output."""
        return f"{out}/manifest.json" if (self.root / out).is_dir() else out

    def known(self, stage: str) -> bool:
        """Returns True if Snakemake has records of these outputs, so that it notices edits of what they depend on."""
        return all(known_to_snakemake(self.root, self.target(out)) for out in self.graph.outs[stage])


def opened(root: Path, action: Callable[[State], list[str]]) -> list[str]:
    """Runs an action on the repository's state. Raises PicollmError for an OSError."""
    try:
        with dvc_repo(root) as repo:
            return action(State(root, repo))
    except OSError as error:
        raise PicollmError(f"{error}: fix that and run `picollm sync`; no file was left half-written") from None


# --- Runs are recorded in DVC


def record(state: State) -> list[str]:
    """Commits to DVC the changed stages that a receipt proves; returns their names.

    If only files differ, an entry in dvc.lock takes precedence over an older run, provided that the cache has its
    files: git brought the entry here, or somebody edited the files and reverted the edit.
    """
    back, ready = restorable(state), []
    for stage, change in state.changed.items():
        if not state.graph.upstream(stage) & state.changed.keys() <= set(ready):
            continue
        run = state.proven(stage) and (stage not in back or state.newer_than_lock(stage))
        if run or only_uncached(state, stage, change):
            ready.append(stage)
    commit(state, ready)
    return ready


def stages_of(state: State) -> list[PipelineStage]:
    """Returns DVC's own stage objects; all come from dvc.yaml."""
    return cast("list[PipelineStage]", list(state.repo.index.stages))


def only_uncached(state: State, stage: str, change: Change) -> bool:
    """Returns True if the only problem is that the cache lost objects of files that still match dvc.lock."""
    if not change.only_outputs or set(change.outs.values()) != {"not in cache"}:
        return False
    locked = {out["path"]: out["md5"] for out in state.lock[stage]["outs"]}
    outs = next(candidate for candidate in stages_of(state) if candidate.name == stage).outs
    if not all(out.exists for out in outs):
        return False
    for out in outs:
        out.save()  # hashes the file, in memory: DVC's status does not check if an uncached file was edited
    return all(out.hash_info.value == locked[out.def_path] for out in outs)


def commit(state: State, stages: list[str]) -> None:
    """Does `dvc commit -f --no-relink STAGE ...` at once: by name DVC would read and write dvc.lock for each stage."""
    if not stages:
        return
    with lock_repo(state.repo):
        ready = [stage for stage in stages_of(state) if stage.name in stages]
        for stage in ready:
            stage.save()
            stage.commit(relink=False)
        ready[0].dvcfile.dump_stages(ready, update_pipeline=False)
    state.look()


# --- Files are restored from DVC's cache


def restorable(state: State) -> list[str]:
    """Returns the stages that differ only in files, whose files in dvc.lock are all available, with no stale inputs."""
    sound: set[str] = set()  # stages that are correct once those in `stages` are restored
    stages: list[str] = []
    for stage, change in state.changed.items():
        if stage not in state.lock or change.edited or not state.graph.upstream(stage) & state.changed.keys() <= sound:
            continue
        if change.outs:
            try:
                files = files_in_lock(state, stage)
            except PicollmError:
                continue
            wrong = differing(state.root, files)
            if not all(object_path(state.cache, files[path]).exists() for path in wrong):
                continue
            stages.append(stage)
        sound.add(stage)
    return stages


def files_in_lock(state: State, stage: str) -> dict[str, str]:
    outs = state.lock[stage]["outs"]
    return {path: oid for out in outs for path, oid in locked_files(state.cache, out).items()}


def restore(state: State) -> list[str]:
    """Restores the files that dvc.lock names; sets aside first what the cache does not have. Returns the stages."""
    stages = restorable(state)
    if not stages:
        return []
    wanted = {stage: files_in_lock(state, stage) for stage in stages}
    for stage, files in wanted.items():
        present = present_files(state, stage)
        wrong = differing(state.root, {path: files.get(path, "") for path in present})
        set_aside(state.root, [p for p in wrong if not object_path(state.cache, md5(state.root / p)).exists()])
        for path in filter(is_metric, differing(state.root, files)):  # git's, but in the cache too, for DVC's run cache
            write_bytes(state.root / path, object_path(state.cache, files[path]).read_bytes())
    # Not repo.checkout(stages): it reads dvc.lock again for each target, half a second each.
    with lock_repo(state.repo):
        for stage in stages_of(state):
            if stage.name in stages:
                stage.checkout(force=True)
    damaged = [path for files in wanted.values() for path in differing(state.root, files)]
    if damaged:  # DVC checks out damaged objects of its cache without a check
        set_aside(state.root, [path for path in damaged if (state.root / path).exists()])
        raise PicollmError(f"DVC's cache holds damaged bytes for {', '.join(damaged)}: run `picollm verify --fix`")
    state.look()
    return stages


def present_files(state: State, stage: str) -> list[str]:
    return [file for out in state.graph.outs[stage] for file in files_of(state.root, out)]


def set_aside(root: Path, files: list[str]) -> None:
    """Moves files to aside/TIME/, where they stay until somebody deletes them."""
    if not files:
        return
    folder = root / "aside" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / file, target)
    names = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    say(f"moved to {folder.relative_to(root)}, as neither dvc.lock nor a finished run accounts for them: {names}")


# --- Snakemake's records are updated


def touch(state: State) -> None:
    """Makes Snakemake record every unchanged stage as made from the current files."""
    stages = [stage for stage in state.graph.stages if stage not in state.changed]
    rules = [rule for stage in stages for rule in state.graph.rules(stage)]
    if stages:
        quiet = ["--touch", "--forceall", "--quiet", "all", "--allowed-rules"]
        call([*SNAKEMAKE, *quiet, *rules, "--", *stages], state.root)


def tell_snakemake(state: State, restored: bool) -> list[str]:
    """Touches what Snakemake does not know to be current, and sets aside what it does not know to be stale.

    If files were `restored`, Snakemake knows nothing about them and need not be asked. Returns the touched stages.
    """
    unchanged = [stage for stage in state.graph.stages if stage not in state.changed]
    touched = unchanged if restored else [stage for stage in unchanged if not state.known(stage)]
    runs = set() if touched else planned(state.root)
    touched = touched or [stage for stage in unchanged if stage in runs]
    if touched:
        touch(state)
        runs = planned(state.root) if state.changed else set()
    unseen = state.graph.downstream(state.changed) - runs
    hidden = state.graph.downstream(unseen)  # Snakemake does not make a missing file that no rule to be run needs
    stages = [stage for stage in state.graph.stages if stage in hidden]
    set_aside(state.root, [file for stage in stages for file in present_files(state, stage)])
    return touched


def seal_if_settled(state: State) -> None:
    """Writes the seal, unless files differ from dvc.lock: reverting an edit may prove them, or the cache has them."""
    unsettled = any(
        change.outs and (stage in state.lock or present_files(state, stage)) for stage, change in state.changed.items()
    )
    if unsettled:
        seal.remove(state.root)
        return
    outs = [out for entry in state.lock.values() for out in entry["outs"] if not is_metric(out["path"])]
    oids = {oid for out in outs for oid in (out["md5"], *locked_files(state.cache, out).values())}
    objects = [os.path.relpath(object_path(state.cache, oid), state.root) for oid in sorted(oids)]
    seal.write(state.root, [*state.graph.maker, *state.graph.every_source], objects)


def track(root: Path) -> list[str]:
    """Commits to DVC, after a run, what it finished; returns the stages' names."""

    def action(state: State) -> list[str]:
        recorded = record(state)
        if not state.changed and all(map(state.known, state.graph.stages)):
            seal_if_settled(state)
        return recorded

    return opened(root, action)


def check(root: Path) -> None:
    """Checks without changes. Raises PicollmError if `sync` has something to do."""

    def action(state: State) -> list[str]:
        unknown = [stage for stage in state.graph.stages if stage not in state.changed and not state.known(stage)]
        odd = restorable(state) or unknown or sorted(planned(root) ^ state.graph.downstream(state.changed))
        if odd := [stage for stage in odd if stage in state.graph.outs]:
            raise PicollmError(
                f"data, dvc.lock and Snakemake's records don't agree about {', '.join(odd)}: run `picollm sync` "
                "(a run without -n does this automatically)"
            )
        seal_if_settled(state)
        return []

    opened(root, action)


def sync(root: Path) -> None:
    """Brings data, dvc.lock and Snakemake's records to one state, and prints what was done."""

    def action(state: State) -> list[str]:
        recorded, restored = record(state), restore(state)
        done = {
            "recorded in DVC:": recorded + (record(state) if restored else []),
            "restored from DVC's cache:": restored,
            "updated in Snakemake:": tell_snakemake(state, bool(restored) or not (root / METADATA).exists()),
        }
        if state.changed:
            state.look()
        seal_if_settled(state)
        done["stale, to be made by the next run:"] = sorted(state.graph.downstream(state.changed))
        return [f"{heading} {', '.join(stages)}" for heading, stages in done.items() if stages]

    for line in opened(root, action) or ["data, dvc.lock and Snakemake's records agree"]:
        say(line)
