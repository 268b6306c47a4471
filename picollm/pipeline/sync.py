"""Bring the data and both tools' records to one state: `picollm track` and `picollm sync`.

The two prove things differently: DVC by the hashes in dvc.lock, Snakemake by its record of the run that made a file.
What either proves, the other is told. What neither proves is set aside, so that both see that it is to be made.

                        dvc.lock agrees             dvc.lock does not
    Snakemake proves    nothing to do               the run is new: committed to DVC      (track does this alone)
    it does not         Snakemake is told (--touch) restored from DVC's cache, or set aside
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from dvc.repo import Repo, lock_repo

from picollm.data.files import read_json, write_bytes
from picollm.data.manifest import entries, prove
from picollm.errors import PicollmError
from picollm.pipeline import records, seal
from picollm.pipeline.objects import differing, files_of, is_metric, md5, object_path
from picollm.pipeline.records import SNAKEMAKE, Complaints, Row
from picollm.pipeline.repository import dvc_repo


def say(message: str) -> None:
    print(f"picollm: {message}", file=sys.stderr)


@dataclass
class State:
    """The repository as both tools see it; `look` asks DVC again."""

    root: Path
    repo: Repo

    def __post_init__(self) -> None:
        self.table = records.read_table(self.root)
        self.seal = seal.read(self.root)
        self.cache = Path(self.repo.cache.local.path)
        self.look()

    def look(self) -> None:
        self.__dict__.pop("rows", None)
        self.lock = records.read_lock(self.root)  # damage is said in our words, before DVC says it in its own
        self.changed: dict[str, Complaints] = records.complaints(self.repo.status(), self.table)

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Snakemake's view; asked when it matters only, as an answer takes 1.5 s."""
        return {rule: row for rule, row in records.summary(self.root).items() if rule in self.table.deps}

    def locked_elsewhere(self, stage: str) -> bool:
        """Whether git, not a run, changed the stage's entry in dvc.lock since the seal."""
        if self.seal is None or stage not in self.lock:
            return False
        return self.seal["stages"].get(stage) != seal.entry_digest(self.lock[stage])

    def moved(self, stage: str) -> bool:
        """Whether the stage's files are others than those that were sealed."""
        watched = (self.seal or {}).get("watched", {})
        return any(watched.get(out) != seal.stamps(self.root, out) for out in self.table.outs[stage])

    def agree(self) -> bool:
        """Whether both tools would run the same stages, and would notice an edit of any that they would not."""
        runs = {rule for rule, row in self.rows.items() if row.runs}
        noticed = all(row.known or row.missing for row in self.rows.values())
        return noticed and runs == self.table.downstream(self.changed)


def opened(root: Path, action: Callable[[State], list[str]]) -> list[str]:
    """Run an action on the repository's state; errors become one line."""
    try:
        with dvc_repo(root) as repo:
            return action(State(root, repo))
    except OSError as error:
        raise PicollmError(f"{error}: mend that and run `picollm sync`; no file was changed halfway") from None


# --- What Snakemake proves


def intact(root: Path, output: str) -> bool:
    """False where a folder is not what its manifest says, file by file; other outputs have nothing to compare."""
    path = root / output
    if path.name != "manifest.json":
        return True
    try:
        named = {prove(path, entry, "its rule") for entry in entries(read_json(path))}
    except PicollmError:
        return False
    return named | {path} == {file for file in path.parent.rglob("*") if file.is_file()}


def proven(state: State, stage: str) -> bool:
    """Whether a run of Snakemake made the stage's present files, from its present inputs, parameters and code."""
    row = state.rows.get(stage)
    return (
        row is not None
        and row.current
        and all(records.made_by_snakemake(state.root, output) for output in row.outputs)
        and all(intact(state.root, output) for output in row.outputs)
    )


def commit_proven(state: State) -> list[str]:
    """Tell DVC about runs that it has not seen, and give its cache the objects that it lost; the stages' names."""
    ready: list[str] = []
    for stage, why in state.changed.items():
        new = stage not in state.lock or state.moved(stage)
        new |= why.command and not (why.sources or why.data or why.outs)
        above = state.table.upstream(stage) & state.changed.keys() <= set(ready)
        run = new and above and not state.locked_elsewhere(stage) and proven(state, stage)
        if run or (above and uncached(state, stage)):
            ready.append(stage)
    commit(state, ready)
    return ready


def uncached(state: State, stage: str) -> bool:
    """Whether all that is amiss is that the cache lost objects of files that still are what dvc.lock names."""
    why = state.changed[stage]
    if why.command or why.sources or why.data or set(why.outs.values()) != {"not in cache"}:
        return False
    locked = {out["path"]: out["md5"] for out in state.lock[stage]["outs"]}
    stage_of_dvc = next(found for found in state.repo.index.stages if found.name == stage)
    if not all(out.exists for out in stage_of_dvc.outs):
        return False
    for out in stage_of_dvc.outs:
        out.save()  # hashes the file, in memory: DVC's status does not look whether an uncached file was edited
    return all(out.hash_info.value == locked[out.def_path] for out in stage_of_dvc.outs)


def commit(state: State, stages: list[str]) -> None:
    """`dvc commit -f --no-relink STAGE ...`, in one go: by name DVC would read and write dvc.lock for each."""
    if not stages:
        return
    with lock_repo(state.repo):
        ready = [stage for stage in state.repo.index.stages if stage.name in stages]
        for stage in ready:
            stage.save()
            stage.commit(relink=False)
        ready[0].dvcfile.dump_stages(ready, update_pipeline=False)
    rows = state.rows  # DVC's commit leaves the files as they are, so Snakemake sees what it saw
    state.look()
    state.rows = rows


def seal_if_agreed(state: State) -> None:
    """Not where files are other than dvc.lock says: an edit taken back may prove them, and the cache may have them."""
    unsettled = [
        stage
        for stage, why in state.changed.items()
        if why.outs and (stage in state.lock or any((state.root / out).exists() for out in state.table.outs[stage]))
    ]
    if unsettled or not state.agree():
        seal.lift(state.root)
    else:
        seal.write(state.root, state.table, state.lock, state.cache)


def track(root: Path) -> list[str]:
    """Commit to DVC the stages that Snakemake proves complete and current; their names."""

    def action(state: State) -> list[str]:
        committed = commit_proven(state)
        seal_if_agreed(state)
        return committed

    return opened(root, action)


# --- What DVC proves


def locked_files(state: State, stage: str) -> dict[str, str]:
    """{path: md5} of all files that dvc.lock names for a stage."""
    outs = state.lock[stage]["outs"]
    return {path: oid for out in outs for path, oid in files_of(state.cache, out).items()}


def restorable(state: State) -> list[str]:
    """The stages whose files alone are amiss, with all that dvc.lock names at hand, and nothing stale above."""
    well: set[str] = set()  # once the found ones are restored
    found: list[str] = []
    for stage, why in state.changed.items():
        above = state.table.upstream(stage) & state.changed.keys() <= well
        if stage not in state.lock or why.command or why.sources or not above:
            continue
        if why.outs:
            try:
                files = locked_files(state, stage)
            except PicollmError:
                continue
            lost = [oid for oid in files.values() if not object_path(state.cache, oid).exists()]
            if set(lost) & {files[path] for path in differing(state.root, files)}:
                continue
            found.append(stage)
        well.add(stage)
    return found


def restore(state: State) -> list[str]:
    """Give the stages whose files alone are amiss the files that dvc.lock names; what nobody else has is set aside."""
    stages = restorable(state)
    if not stages:
        return []
    wanted = {stage: locked_files(state, stage) for stage in stages}
    for stage, files in wanted.items():
        present = [path for out in state.table.outs[stage] for path in seal.stamps(state.root, out)]
        wrong = differing(state.root, {path: files.get(path, "") for path in present})
        unsaved = [path for path in wrong if not object_path(state.cache, md5(state.root / path)).exists()]
        set_aside(state.root, unsaved)
        for path in filter(is_metric, differing(state.root, files)):  # git's, but in the cache too, for DVC's run cache
            write_bytes(state.root / path, object_path(state.cache, files[path]).read_bytes())
    # Not repo.checkout(stages): for each target that reads dvc.lock anew, half a second each.
    with lock_repo(state.repo):
        for stage in state.repo.index.stages:
            if stage.name in stages:
                stage.checkout(force=True)
    damaged = [path for files in wanted.values() for path in differing(state.root, files)]
    if damaged:  # DVC hands out damaged objects of its cache without a look
        set_aside(state.root, [path for path in damaged if (state.root / path).exists()])
        raise PicollmError(f"DVC's cache holds damaged bytes for {', '.join(damaged)}: run `picollm verify --fix`")
    state.look()
    return stages


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
    say(f"moved to {folder.relative_to(root)}, as nothing proves it: {names}")


def bless(state: State, ask: bool) -> list[str]:
    """Tell Snakemake about the stages that DVC proves: it records them as made from what lies there now.

    Without `ask` all of them, with it those that Snakemake does not know to be current.
    """
    unknown = proved = [stage for stage in state.table.deps if stage not in state.changed]
    if ask:
        unknown = [stage for stage in proved if not (row := state.rows.get(stage)) or not row.current]
    if unknown:
        rules = [rule for stage in proved for rule in state.table.rules[stage]]
        touch = [*SNAKEMAKE, "--touch", "--forceall", "--quiet", "all", "--allowed-rules", *rules, "--", *proved]
        records.run(touch, state.root)
    return unknown


def give_up(state: State) -> None:
    """Set aside the files of stages that are stale although Snakemake does not see why.

    And those of all that is below: Snakemake makes no missing file again that nothing to be made needs.
    """
    blind = []
    for stage, why in state.changed.items():
        row = state.rows.get(stage, Row(known=False))
        own = why.command or why.sources or why.outs or not state.table.upstream(stage) & state.changed.keys()
        seen = row.known and row.reasons or row.missing and row.runs
        if own and not seen:
            blind.append(stage)
    outs = [out for stage in state.table.downstream(blind) for out in state.table.outs[stage]]
    set_aside(state.root, [path for out in outs for path in seal.stamps(state.root, out)])


def check(root: Path) -> None:
    """Change nothing. Raises PicollmError where the tools don't agree, or where the cache has what is missing."""

    def action(state: State) -> list[str]:
        back = restorable(state)
        if back or not state.agree():
            unknown = [rule for rule, row in state.rows.items() if not row.known]
            unproven = back or list(state.changed) or unknown
            raise PicollmError(
                f"data, dvc.lock and Snakemake's records don't agree about {', '.join(unproven)}: run `picollm sync` "
                "(a run without -n does it by itself)"
            )
        seal_if_agreed(state)
        return []

    opened(root, action)


def sync(root: Path) -> None:
    """Bring data, dvc.lock and Snakemake's records to one state, and say what was done."""

    def action(state: State) -> list[str]:
        done = {
            "told DVC about": commit_proven(state),
            "restored from DVC's cache": (restored := restore(state)),
            "told Snakemake about": bless(state, ask=not restored and (root / records.METADATA).exists()),
        }
        give_up(state)
        if state.changed:
            state.look()
            seal_if_agreed(state)
        else:  # both call everything current
            seal.write(state.root, state.table, state.lock, state.cache)
        done["stale, to be made by the next run:"] = sorted(state.table.downstream(state.changed))
        return [f"{what} {', '.join(stages)}" for what, stages in done.items() if stages]

    for line in opened(root, action) or ["data, dvc.lock and Snakemake's records agree"]:
        say(line)
