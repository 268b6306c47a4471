"""Actions of users on a repository, and the correct response of both tools.

Each row is a deed in a copy of a repository that has been run, and the rules that it makes stale. In one copy
Snakemake runs next (after `picollm sync` if its own record can't be right), in another `dvc repro` does, directly. Both
must name the same rules, end with the bytes of a build from scratch, and then have nothing to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import standin
import yaml
from workspace import Workspace

DATA = {"prepare_corpus", "tokenize_pack"}
ENDS = {"draw_figures", "final_report"}
FINDINGS = {"state_findings"} | ENDS
CLUSTERS = {"cluster_heads"} | FINDINGS
HEADS = {"classify_heads", "score_mechanisms"} | CLUSTERS
ATTENTION = {"extract_attention"} | HEADS
ENGINE = {"trt_compile", "trt_benchmark"} | ENDS
MECHANISMS = {"score_mechanisms", "ablate_heads", "probe_heads"} | FINDINGS
MODEL = {"pretrain", "nsys_capture"} | ATTENTION | ENGINE | MECHANISMS
ALL = DATA | MODEL
NONE: set[str] = set()

WEIGHTS = "data/model/model.safetensors"
SHARD = "data/tokens/shard-0.bin"
SHARD_1 = "data/tokens/shard-1.bin"
REPORT, PAGE = "reports/clusters.json", "reports/final.html"
HTML = "picollm/report/page.py"
SNAKEMAKE = ("snakemake", "--cores", "all")
SENTENCES = "picollm/attention/sentences.yaml"


@dataclass(frozen=True)
class Row:
    name: str
    deed: Callable[[Workspace], object]
    stale: set[str]  # what both tools would run afterwards


# Relatives of other rows, and kinds of event that the walks have too: CI leaves them to `make test-all`.
EXHAUSTIVE = {
    "a parameter of the report", "slices and back", "each category apart",
    "keys in another order", "a module of the report",
    "the command line", "the report's template", "code of another branch and back", "a branch with dvc checkout",
    "another branch's data and back", "a clone with dvc pull and edited code", "a clone with dvc pull and a lost file",
    "outputs wiped, dvc checkout", "one output wiped", "Snakemake's records wiped", "cache wiped", "a longer shard",
    "a lost shard", "a foreign file in data", "a report edited by hand", "a metric edited by hand",
    "a lost artefact that no cache has", "a lost report that no cache has", "a missing cache object",
    "a value, dvc repro, the value back", "dvc repro of one stage", "outputs a day older", "an input a day newer",
    "snakemake --touch by hand", "the first rule again", "receipts wiped", "two values swapped",
    "the ablation in slices", "a number in other words", "the config's schema", "all code touched",
    "a branch's config.yaml alone", "a clone with dvc pull", "metrics wiped", "swapped shards",
    "weights edited by hand",
    "Snakemake's records wiped, and an edit", "an edited artefact that no cache has", "outputs a day newer",
    "a value, a run, the value back", "cache and records wiped", "one record wiped, and an edit",
    "the training split in slices", "a branch and an edit", "snakemake up to one rule", "a stash and its return",
    "outputs wiped", "records of an older version", "a parameter and back", "a merge", "a script",
}  # fmt: skip


def closed(workspace: Workspace) -> set[str]:
    """Returns DVC's changed stages and all that depend on them in dvc.yaml."""
    return standin.downstream(workspace.path, workspace.changed())


def views(workspace: Workspace) -> tuple[set[str], set[str]]:
    """Returns what Snakemake and DVC would run; `snakemake -n` only reports, so a state it can't judge is synced."""
    text = workspace.snakemake("-n", "--quiet", "rules", ok=None)
    if "run `picollm sync`" in text:
        workspace.picollm("sync")
        text = workspace.snakemake("-n", "--quiet", "rules")
    return workspace.jobs(text), closed(workspace)


def wrong(workspace: Workspace) -> list[str]:
    """Returns the artefacts whose bytes differ from a build from scratch."""
    return [path for path, data in standin.expected(workspace.path).items() if read(workspace, path) != data]


def read(workspace: Workspace, path: str) -> bytes | None:
    file = workspace.path / path
    return file.read_bytes() if file.exists() else None


def write(path: str, change: Callable[[bytes], bytes]) -> Callable[[Workspace], None]:
    """A deed: change a file's bytes."""

    def deed(workspace: Workspace) -> None:
        file = workspace.path / path
        file.chmod(0o644)
        file.write_bytes(change(file.read_bytes()))

    return deed


def config(section: str, **values: object) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.set(section, **values)


def run(*command: str) -> Callable[[Workspace], str]:
    return lambda workspace: workspace.run(*command)


def remove(*paths: str) -> Callable[[Workspace], None]:
    def deed(workspace: Workspace) -> None:
        for path in paths:
            file = workspace.path / path
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    return deed


def steps(*deeds: Callable[[Workspace], object]) -> Callable[[Workspace], None]:
    def deed(workspace: Workspace) -> None:
        for step in deeds:
            step(workspace)

    return deed


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def append(data: bytes) -> bytes:
    return data + b"#\n"


def checkout(*arguments: str) -> Callable[[Workspace], str]:
    return run("git", "checkout", "-q", *arguments)


def uncache(path: str) -> Callable[[Workspace], None]:
    """A deed: DVC's cache loses the object of a file."""

    def deed(workspace: Workspace) -> None:
        stages = yaml.safe_load((workspace.path / "dvc.lock").read_text())["stages"].values()
        oid = next(out["md5"] for stage in stages for out in stage["outs"] if out["path"] == path)
        cached = workspace.path / ".dvc/cache/files/md5" / oid[:2] / oid[2:]
        cached.unlink()

    return deed


def age(path: str, days: int) -> Callable[[Workspace], None]:
    def deed(workspace: Workspace) -> None:
        file = workspace.path / path
        moved = file.stat().st_mtime + days * 86400
        os.utime(file, (moved, moved))

    return deed


def old_but_edited(path: str) -> Callable[[Workspace], None]:
    """A deed: other content, but an older time stamp, as `cp -p` and `tar x` give it."""
    return steps(write(path, append), age(path, -400))


def swap(section: str, first: str, second: str) -> Callable[[Workspace], None]:
    def deed(workspace: Workspace) -> None:
        values = yaml.safe_load((workspace.path / "config.yaml").read_text())[section]
        workspace.set(section, **{first: values[second], second: values[first]})

    return deed


def reorder(workspace: Workspace) -> None:
    values = yaml.safe_load((workspace.path / "config.yaml").read_text())
    turned = {name: dict(reversed(section.items())) for name, section in reversed(values.items())}
    (workspace.path / "config.yaml").write_text("# other comments\n" + yaml.safe_dump(turned, sort_keys=False))


def spell(old: str, new: str) -> Callable[[Workspace], None]:
    """A deed: the same value in other words."""

    def deed(workspace: Workspace) -> None:
        file = workspace.path / "config.yaml"
        assert old in (text := file.read_text())
        file.write_text(text.replace(old, new))

    return deed


def pulled_clone(workspace: Workspace) -> None:
    """A deed: the repository becomes a fresh clone of itself, with pulled data."""
    fresh_clone(workspace)
    workspace.run("dvc", "pull", "-q")


def fresh_clone(workspace: Workspace) -> None:
    origin = workspace.path.with_name(workspace.path.name + ".origin")
    workspace.path.rename(origin)
    subprocess.run(["git", "clone", "-q", str(origin), str(workspace.path)], check=True)
    workspace.run("dvc", "remote", "add", "-q", "-d", "--local", "origin", str(origin / ".dvc/cache"))


def moved(workspace: Workspace) -> None:
    """A deed: the repository is moved, and loses its time stamps."""
    elsewhere = workspace.path.with_name(f"{workspace.path.name} elsewhere ü")
    shutil.copytree(workspace.path, elsewhere, copy_function=shutil.copyfile)
    shutil.rmtree(workspace.path)
    elsewhere.rename(workspace.path)


def write_old_seal(workspace: Workspace) -> None:
    """A deed: the records of picollm versions without receipts."""
    path = workspace.path / ".snakemake/picollm/seal.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"dvc.yaml": "0", "dvc.lock": "0", "stages": {}, "objects": [], "watched": {}}')


DVC_CHECKOUT = run("dvc", "checkout", "-q")
FEWER, TITLE = config("clusters", max_k=3), config("report", title="other")

ROWS = [
    Row("nothing", lambda workspace: None, NONE),
    # 13: config.yaml (every leaf: test_staleness.py)
    Row("a parameter", FEWER, CLUSTERS),
    Row("a parameter of the report", TITLE, ENDS),
    Row("a parameter and back", steps(config("pretrain", lr=0.5), checkout("--", "config.yaml")), NONE),
    Row("two values swapped", swap("heads", "kappa", "content"), HEADS),
    Row("the training split in slices", config("tokens", slices=3), ALL - {"prepare_corpus"}),
    Row("the ablation in slices", config("mechanisms", slices=3), MECHANISMS),
    Row("each category apart", config("attention", apart=True), ATTENTION | {"probe_heads"}),
    Row("slices and back", steps(config("tokens", slices=3), checkout("--", "config.yaml")), NONE),
    Row("keys in another order", reorder, NONE),
    Row("a number in other words", spell("kappa: 0.25", "kappa: 2.5e-1"), NONE),
    # 14: code (every module: test_staleness.py)
    Row("a module's body", write("picollm/attention/clusters.py", append), CLUSTERS),
    Row("a module of the report", write(HTML, append), {"final_report"}),
    Row("the config's schema", write("picollm/config.py", append), NONE),
    Row("the command line", write("picollm/cli.py", append), NONE),
    Row("a script", write("workflow_scripts/final_report.py", append), {"final_report"}),
    Row("the report's template", write("picollm/report/html/data.html.j2", append), {"final_report"}),
    Row("all code touched", run("bash", "-c", "find picollm rules workflow_scripts -type f -exec touch {} +"), NONE),
    Row("code of another branch and back", steps(checkout("other"), checkout("main")), NONE),
    # 15: git and DVC
    Row("a branch without dvc checkout", checkout("other"), NONE),
    Row("a branch with dvc checkout", steps(checkout("other"), DVC_CHECKOUT), NONE),
    Row("a branch and an edit", steps(checkout("other"), TITLE), ENDS),
    Row("a branch's config.yaml alone", checkout("other", "--", "config.yaml"), CLUSTERS),
    Row("a branch's dvc.lock alone", checkout("other", "--", "dvc.lock"), CLUSTERS),
    Row("another branch's data and back", steps(checkout("other"), DVC_CHECKOUT, checkout("main")), NONE),
    Row("a merge", run("git", "merge", "-q", "other"), NONE),
    Row("a clone with dvc pull", pulled_clone, NONE),
    Row("a clone with dvc pull and an edit", steps(pulled_clone, FEWER), CLUSTERS),
    Row("a clone with dvc pull and edited code", steps(pulled_clone, write(HTML, append)), {"final_report"}),
    Row("a clone with dvc pull and a lost file", steps(pulled_clone, remove(WEIGHTS)), NONE),
    Row("a clone without data", fresh_clone, ALL),
    Row("outputs wiped, dvc checkout", steps(remove("data"), DVC_CHECKOUT), NONE),
    Row("outputs wiped", remove("data"), NONE),
    Row("one output wiped", remove(WEIGHTS), NONE),
    Row("metrics wiped", remove("reports/metrics"), NONE),
    Row("Snakemake's records wiped", remove(".snakemake"), NONE),
    Row("Snakemake's records wiped, and an edit", steps(remove(".snakemake"), FEWER), CLUSTERS),
    Row("one record wiped, and an edit",
        steps(run("snakemake", "--cores", "all", "--cleanup-metadata", "reports/clusters.json", "data/clusters.npz",
                  "reports/metrics/clusters.json"), FEWER), CLUSTERS),
    # Receipts prove the others; those of CLUSTERS belong to the other branch's run, whose files are not here.
    Row("dvc.lock wiped", remove("dvc.lock"), CLUSTERS),
    Row("receipts wiped", remove(".snakemake/picollm/receipts"), NONE),
    Row("records of an older version", steps(remove(".snakemake/picollm"), write_old_seal), NONE),
    Row("cache wiped", remove(".dvc/cache"), NONE),
    Row("cache and records wiped", remove(".dvc/cache", ".snakemake"), NONE),
    Row("a stash and its return", steps(TITLE, run("git", "stash", "-q"), run("git", "stash", "pop", "-q")), ENDS),
    # 6, 8: artefacts changed by hand or by a disk
    Row("a flipped bit in a shard", write(SHARD, flip), NONE),
    Row("a longer shard", write(SHARD, append), NONE),
    Row("a lost shard", remove(SHARD), NONE),
    Row("swapped shards", steps(run("mv", SHARD, "x"), run("mv", SHARD_1, SHARD), run("mv", "x", SHARD_1)), NONE),
    Row("a foreign file among the shards", run("cp", "config.yaml", "data/tokens/shard-9.bin"), NONE),
    Row("a foreign file in data", run("cp", "config.yaml", "data/notes.txt"), NONE),
    Row("weights edited by hand", write(WEIGHTS, append), NONE),
    Row("a report edited by hand", write("reports/heads.json", append), NONE),
    Row("a metric edited by hand", write("reports/metrics/heads.json", append), NONE),
    Row("an edited artefact that no cache has", steps(uncache(REPORT), write(REPORT, append)), CLUSTERS),
    Row("a lost artefact that no cache has", steps(uncache(REPORT), remove(REPORT)), CLUSTERS),
    Row("a lost report that no cache has", steps(uncache(PAGE), remove(PAGE)), {"final_report"}),
    Row("a missing cache object", uncache(WEIGHTS), NONE),
    # 16, 17
    Row("the first rule again", run(*SNAKEMAKE, "-R", "prepare_corpus", "--until", "prepare_corpus"), NONE),
    Row("a value, a run, the value back", steps(TITLE, run(*SNAKEMAKE), checkout("--", "config.yaml")), ENDS),
    Row("a value, dvc repro, the value back", steps(TITLE, run("dvc", "repro"), checkout("--", "config.yaml")), ENDS),
    Row("dvc repro of one stage", steps(FEWER, run("dvc", "repro", "-s", "cluster_heads")), FINDINGS),
    Row("snakemake up to one rule", steps(FEWER, run(*SNAKEMAKE, "cluster_heads")), FINDINGS),
    Row("snakemake --touch by hand", run(*SNAKEMAKE, "--touch"), NONE),
    # 19: clocks
    Row("outputs a day older", age(WEIGHTS, -1), NONE),
    Row("outputs a day newer", age(WEIGHTS, 1), NONE),
    Row("an input a day newer", age(SENTENCES, 1), NONE),
    Row("an input with an old time stamp", old_but_edited(SENTENCES), ATTENTION),
    # 21
    Row("the repository elsewhere", moved, NONE),
]  # fmt: skip


def marks(row: Row) -> list:
    return [pytest.mark.exhaustive if row.name in EXHAUSTIVE else pytest.mark.slow]


def test_every_name_in_exhaustive_is_a_row():
    assert EXHAUSTIVE <= {row.name for row in ROWS}


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks(row)) for row in ROWS])
def test_both_tools_agree_and_end_with_the_right_bytes(built, tmp_path, row):
    with ThreadPoolExecutor() as pool:
        drives = [pool.submit(drive, built.copy(tmp_path / driver), row, driver) for driver in ("snakemake", "dvc")]
    for done in drives:
        done.result()


def drive(workspace: Workspace, row: Row, driver: str) -> None:
    row.deed(workspace)
    if driver == "dvc":
        workspace.run("dvc", "repro")
        assert wrong(workspace) == []
        assert workspace.changed() == NONE
        return
    assert views(workspace) == (row.stale, row.stale)
    if row.stale:
        workspace.snakemake("--quiet", "all")
        assert views(workspace) == (NONE, NONE)
    assert wrong(workspace) == []


@pytest.mark.slow
def test_snakemake_has_nothing_to_do_after_dvc(built, tmp_path):
    copy = built.copy(tmp_path / "copy")
    FEWER(copy)
    copy.run("dvc", "repro")
    assert views(copy) == (NONE, NONE)
    copy.snakemake("--quiet", "all")
    assert wrong(copy) == []
