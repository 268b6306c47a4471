"""Bring the data, dvc.lock and Snakemake's records to one state: `picollm track` and `picollm sync`.

DVC is the judge: what `dvc status` calls unchanged is current, and everything below what it calls changed is stale.
Before it is asked it is told of runs that it has not seen, which receipts prove. Then Snakemake is told the verdict.

    record      a receipt matches what lies here, and dvc.lock does not say so     -> dvc commit
    restore     only files differ from dvc.lock, and DVC's cache has them          -> dvc checkout
    set aside   stale, and Snakemake can't see it                                  -> moved to aside/TIME/
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
        self.lock = read_lock(self.root)  # damage is said in our words, before DVC says it in its own
        self.changed: dict[str, Change] = changes(self.repo.status(), self.graph)
        self.proven = cache(self._proven)

    def _proven(self, stage: str) -> bool:
        """Whether the stage's receipt matches what lies here."""
        receipt = self.receipts.get(stage)
        return receipt is not None and receipt.matches(self.root, self.config) and self.same_sources(stage)

    def same_sources(self, stage: str) -> bool:
        """Whether the run had all inputs that people write now, and no other: a corpus may have a new file."""
        made = {file for file in self.receipts[stage].inputs if self.made(file)}
        now = {file for path in self.graph.sources(stage) for file in self.source_files(path)}
        return self.receipts[stage].inputs.keys() - made == now

    def made(self, file: str) -> bool:
        return any(path in self.graph.maker for path in (file, *map(str, Path(file).parents)))

    def source_files(self, path: str) -> list[str]:
        return corpus_files(self.config["corpus"]) if (self.root / path).is_dir() else [path]

    def newer_than_lock(self, stage: str) -> bool:
        """Whether the stage ran since its entry in dvc.lock was written or checked out."""
        return self.receipts[stage].locked == receipts.lock_entry(self.root, stage)

    def target(self, out: str) -> str:
        """Snakemake's name of an output."""
        return f"{out}/manifest.json" if (self.root / out).is_dir() else out

    def known(self, stage: str) -> bool:
        """Whether Snakemake has records of these outputs, so that it would notice an edit of what they depend on."""
        return all(known_to_snakemake(self.root, self.target(out)) for out in self.graph.outs[stage])


def opened(root: Path, action: Callable[[State], list[str]]) -> list[str]:
    """Run an action on the repository's state; errors become one line."""
    try:
        with dvc_repo(root) as repo:
            return action(State(root, repo))
    except OSError as error:
        raise PicollmError(f"{error}: fix that and run `picollm sync`; no file was changed halfway") from None


# --- DVC is told of runs


def record(state: State) -> list[str]:
    """Commit to DVC the changed stages that a receipt proves; their names.

    Where nothing but files differs, a run that is older than its entry in dvc.lock gives way to that entry, if the
    cache has its files: git brought it here, or somebody edited the files and took the edit back.
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
    """DVC's own objects; all are of dvc.yaml."""
    return cast("list[PipelineStage]", list(state.repo.index.stages))


def only_uncached(state: State, stage: str, change: Change) -> bool:
    """Whether all that is wrong is that the cache lost objects of files that still are what dvc.lock names."""
    if not change.only_outputs or set(change.outs.values()) != {"not in cache"}:
        return False
    locked = {out["path"]: out["md5"] for out in state.lock[stage]["outs"]}
    outs = next(found for found in stages_of(state) if found.name == stage).outs
    if not all(out.exists for out in outs):
        return False
    for out in outs:
        out.save()  # hashes the file, in memory: DVC's status does not look whether an uncached file was edited
    return all(out.hash_info.value == locked[out.def_path] for out in outs)


def commit(state: State, stages: list[str]) -> None:
    """`dvc commit -f --no-relink STAGE ...`, in one go: by name DVC would read and write dvc.lock for each."""
    if not stages:
        return
    with lock_repo(state.repo):
        ready = [stage for stage in stages_of(state) if stage.name in stages]
        for stage in ready:
            stage.save()
            stage.commit(relink=False)
        ready[0].dvcfile.dump_stages(ready, update_pipeline=False)
    state.look()


# --- Files that dvc.lock names


def restorable(state: State) -> list[str]:
    """The stages of which only files differ, with all that dvc.lock names at hand, and nothing stale above."""
    sound: set[str] = set()  # once the found ones are restored
    found: list[str] = []
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
            found.append(stage)
        sound.add(stage)
    return found


def files_in_lock(state: State, stage: str) -> dict[str, str]:
    outs = state.lock[stage]["outs"]
    return {path: oid for out in outs for path, oid in locked_files(state.cache, out).items()}


def restore(state: State) -> list[str]:
    """Give these stages the files that dvc.lock names; what the cache does not have is set aside first."""
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
    # Not repo.checkout(stages): for each target that reads dvc.lock anew, half a second each.
    with lock_repo(state.repo):
        for stage in stages_of(state):
            if stage.name in stages:
                stage.checkout(force=True)
    damaged = [path for files in wanted.values() for path in differing(state.root, files)]
    if damaged:  # DVC hands out damaged objects of its cache without a look
        set_aside(state.root, [path for path in damaged if (state.root / path).exists()])
        raise PicollmError(f"DVC's cache holds damaged bytes for {', '.join(damaged)}: run `picollm verify --fix`")
    state.look()
    return stages


def present_files(state: State, stage: str) -> list[str]:
    return [file for out in state.graph.outs[stage] for file in files_of(state.root, out)]


def set_aside(root: Path, files: list[str]) -> None:
    """Move files to aside/TIME/, where they stay until somebody deletes them."""
    if not files:
        return
    folder = root / "aside" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / file, target)
    names = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    say(f"moved to {folder.relative_to(root)}, as neither dvc.lock nor a finished run accounts for them: {names}")


# --- Snakemake is told the verdict


def touch(state: State) -> None:
    """Snakemake records every unchanged stage as made from what lies here now."""
    stages = [stage for stage in state.graph.stages if stage not in state.changed]
    rules = [rule for stage in stages for rule in state.graph.rules(stage)]
    if stages:
        quiet = ["--touch", "--forceall", "--quiet", "all", "--allowed-rules"]
        call([*SNAKEMAKE, *quiet, *rules, "--", *stages], state.root)


def tell_snakemake(state: State, restored: bool) -> list[str]:
    """Touch what it does not know to be current, and set aside what it does not see to be stale; what was touched.

    Where files were `restored` it knows nothing of them, and need not be asked.
    """
    unchanged = [stage for stage in state.graph.stages if stage not in state.changed]
    told = unchanged if restored else [stage for stage in unchanged if not state.known(stage)]
    runs = set() if told else planned(state.root)
    told = told or [stage for stage in unchanged if stage in runs]
    if told:
        touch(state)
        runs = planned(state.root) if state.changed else set()
    unseen = state.graph.downstream(state.changed) - runs
    hidden = state.graph.downstream(unseen)  # Snakemake makes no missing file that nothing to be made needs
    stages = [stage for stage in state.graph.stages if stage in hidden]
    set_aside(state.root, [file for stage in stages for file in present_files(state, stage)])
    return told


def seal_if_settled(state: State) -> None:
    """Not where files are other than dvc.lock says: an edit taken back may prove them, and the cache may have them."""
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
    """After a run: commit to DVC what it finished; the stages' names."""

    def action(state: State) -> list[str]:
        recorded = record(state)
        if not state.changed and all(map(state.known, state.graph.stages)):
            seal_if_settled(state)
        return recorded

    return opened(root, action)


def check(root: Path) -> None:
    """Change nothing. Raises PicollmError where `sync` has something to do."""

    def action(state: State) -> list[str]:
        unknown = [stage for stage in state.graph.stages if stage not in state.changed and not state.known(stage)]
        odd = restorable(state) or unknown or sorted(planned(root) ^ state.graph.downstream(state.changed))
        if odd := [stage for stage in odd if stage in state.graph.outs]:
            raise PicollmError(
                f"data, dvc.lock and Snakemake's records don't agree about {', '.join(odd)}: run `picollm sync` "
                "(a run without -n does it by itself)"
            )
        seal_if_settled(state)
        return []

    opened(root, action)


def sync(root: Path) -> None:
    """Bring data, dvc.lock and Snakemake's records to one state, and say what was done."""

    def action(state: State) -> list[str]:
        recorded, restored = record(state), restore(state)
        done = {
            "told DVC about": recorded + (record(state) if restored else []),
            "restored from DVC's cache": restored,
            "told Snakemake about": tell_snakemake(state, bool(restored) or not (root / METADATA).exists()),
        }
        if state.changed:
            state.look()
        seal_if_settled(state)
        done["stale, to be made by the next run:"] = sorted(state.graph.downstream(state.changed))
        return [f"{what} {', '.join(stages)}" for what, stages in done.items() if stages]

    for line in opened(root, action) or ["data, dvc.lock and Snakemake's records agree"]:
        say(line)
