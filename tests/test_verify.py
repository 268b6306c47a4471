"""`picollm verify` names every fault of the table, and `--fix` repairs what it can and loses nothing."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import workspace
import yaml
from refusals import refusal
from test_scenarios import CLUSTERS

import picollm
from picollm.pipeline import locks
from picollm.pipeline.verify import verify

WEIGHTS, MAPS = "data/model/model.safetensors", "data/attention"
CACHE = ".dvc/cache/files/md5"


@pytest.fixture(autouse=True)
def no_run_of_an_earlier_test(monkeypatch):
    monkeypatch.setenv(locks.HOLDER, "")  # `hold` sets it for the rest of the process


@pytest.fixture
def root(built, tmp_path, monkeypatch) -> Path:
    path = built.copy(tmp_path / "repository").path
    monkeypatch.setattr(picollm, "__file__", str(path / "picollm/__init__.py"))
    monkeypatch.chdir(path)  # the command's working folder, to which DVC's names are relative
    return path


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes the file in place and keeps its mode."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))
    path.chmod(mode)


def flip(path: Path) -> None:
    rewrite(path, lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])


def truncate(path: Path) -> None:
    rewrite(path, lambda data: data[:-1])


def append(path: Path) -> None:
    rewrite(path, lambda data: data + b"x")


def stealthily(path: Path) -> None:
    """Changes a file invisibly for DVC's state database: size, inode and time stamp are the old ones."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(one: Path) -> None:
    other = one.with_name("shard-1.bin")
    one.rename(one.with_name("x")), other.rename(one), one.with_name("x").rename(other)


def duplicate(one: Path) -> None:
    shutil.copy(one.with_name("shard-1.bin"), one)


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed.bin"))


def folder_instead(path: Path) -> None:
    path.unlink()
    foreign(path / "file")


def foreign(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not ours")


# --- What lies in the workspace: fault, file, what else must be named

FAULTS = [
    (flip, "data/tokens/shard-0.bin", "damaged"),
    (flip, "data/tokens/manifest.json", "damaged"),
    (flip, "reports/metrics/heads.json", "damaged"),
    (truncate, "data/engine/shard-0.bin", "damaged"),
    (append, WEIGHTS, "damaged"),
    (Path.unlink, f"{MAPS}/simple.npz", "missing"),
    (stealthily, f"{MAPS}/technical.npz", "damaged"),
    (stealthily, "data/engine/shard-1.bin", "damaged"),
    (swap, "data/profile/shard-0.bin", "damaged"),
    (duplicate, "data/model/snapshots/shard-0.bin", "damaged"),
    (rename, "reports/figures/shard-0.bin", "reports/figures/renamed.bin: foreign"),
    (foreign, "data/tokens/shard-9.bin", "foreign"),
    (folder_instead, f"{MAPS}/questions.npz", "missing, a folder has its name"),
    (foreign, "data/tokens/.shard-9.bin.partial", "half a file"),
    (foreign, ".snakemake/locks/0.input.lock", "a run that was killed"),
]


def contents(top: Path, *folders: str) -> dict[str, bytes]:
    files = (file for folder in folders for file in (top / folder).rglob("*") if file.is_file())
    return {str(file.relative_to(top)): file.read_bytes() for file in files}


def problems(text: str) -> list[str]:
    """Returns the lines of damage and leftovers; none is printed twice, and the last line counts them."""
    lines = text.splitlines()
    assert len(set(lines)) == len(lines)
    assert lines[-1].startswith("verify: ")
    part = text.split("Settings\n")[0].split("Machine\n")[0].splitlines()
    return [line for line in part if line.startswith("  ") and "warning" not in line]


def test_a_sound_repository_is_proven_and_nothing_is_touched(root, capsys):
    before = contents(root, "data", "reports", ".dvc/cache", ".snakemake")
    assert verify(root, fix=False) == 0
    text = capsys.readouterr().out
    assert problems(text) == [] and text.endswith("all proven\n")
    assert contents(root, "data", "reports", ".dvc/cache", ".snakemake") == before


VARIATIONS = [
    pytest.param(*fault, marks=pytest.mark.exhaustive if number % 2 else []) for number, fault in enumerate(FAULTS)
]


@pytest.mark.parametrize(("fault", "file", "named"), VARIATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_is_named(root, capsys, fault, file, named):
    fault(root / file)
    assert verify(root, fix=False) == 1
    lines = problems(capsys.readouterr().out)
    assert any(named in line for line in lines)
    assert any(file in line for line in lines)
    assert len(lines) <= 2  # a swap gives two wrong files, and no sound one is reported


@pytest.mark.slow
def test_fix_mends_all_of_them_and_loses_nothing(root, built, capsys):
    for fault, file, _ in FAULTS:
        fault(root / file)
    before = contents(root, "data", "reports")
    assert verify(root, fix=True) == 0
    assert capsys.readouterr().out.endswith("all proven\n")
    assert contents(root, "data", "reports") == contents(built.path, "data", "reports")
    kept = contents(root, "data", "reports", ".dvc/cache", "aside").values()
    assert set(before.values()) <= set(kept)
    copy = workspace.Workspace(root)
    assert copy.planned() == copy.changed() == set()


# --- DVC's cache


def locked(root: Path) -> dict[str, str]:
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for entry in stages.values() for out in entry["outs"]}


def cached(root: Path, oid: str) -> Path:
    return root / CACHE / oid[:2] / oid[2:]


OBJECTS = [
    (flip, "reports/heads.json", "damaged; it is reports/heads.json"),
    (stealthily, "reports/final.html", "damaged; it is reports/final.html"),
    (truncate, "data/tokens", "damaged; it is the list of the files of data/tokens"),
    (flip, "reports/metrics/heads.json", "damaged; it is reports/metrics/heads.json"),
    (Path.unlink, "data/clusters.npz", "DVC's cache lacks data/clusters.npz"),
    (Path.unlink, "data/engine", "DVC's cache lacks the list of the files of data/engine"),
]


@pytest.mark.parametrize(("fault", "out", "named"), OBJECTS)
def test_a_fault_of_the_cache_is_named(root, capsys, fault, out, named):
    fault(cached(root, locked(root)[out]))
    assert verify(root, fix=False) == 1
    assert [named in line for line in problems(capsys.readouterr().out)] == [True]


@pytest.mark.slow
def test_fix_mends_the_cache_from_the_workspace(root, capsys):
    oids = locked(root)
    sound = contents(root, CACHE)
    for fault, out, _ in OBJECTS:
        fault(cached(root, oids[out]))
    damaged = {data for name, data in contents(root, CACHE).items() if data != sound[name]}
    assert verify(root, fix=True) == 0
    assert contents(root, CACHE) == sound
    assert all(not cached(root, oids[out]).stat().st_mode & 0o222 for _, out, _ in OBJECTS)
    assert damaged <= set(contents(root, "aside").values())


@pytest.mark.slow
def test_a_cache_that_another_project_shares_is_judged_for_only_our_objects(root, tmp_path, capsys):
    shared, other = tmp_path / "shared", workspace.Workspace(tmp_path / "other")
    shutil.copytree(root / ".dvc/cache", shared)
    foreign(other.path / "theirs.bin"), foreign(other.path / "folder/file")
    other.run("git", "init", "-q"), other.run("dvc", "init", "-q")
    for project in (workspace.Workspace(root), other):
        project.run("dvc", "cache", "dir", "--local", str(shared))
    other.run("dvc", "add", "-q", "theirs.bin", "folder")
    theirs = contents(shared, "files/md5").keys() - contents(root / ".dvc/cache", "files/md5").keys()
    assert len(theirs) == 2  # both files have the same bytes; the folder's list
    for name in theirs:
        flip(shared / name)
    foreign(shared / "files/md5/7f/their-pull-is-at-work.tmp")
    before = contents(tmp_path, "shared")
    assert verify(root, fix=False) == 0 and problems(capsys.readouterr().out) == []
    oid = locked(root)[WEIGHTS]
    flip(shared / f"files/md5/{oid[:2]}/{oid[2:]}")
    assert verify(root, fix=False) == 1
    (line,) = problems(capsys.readouterr().out)
    assert oid[2:] in line and f"it is {WEIGHTS}" in line
    assert verify(root, fix=True) == 0
    assert contents(tmp_path, "shared") == before


def test_another_version_of_ours_is_judged_when_dvc_lock_names_it(root, capsys):
    copy, names = workspace.Workspace(root), set(locked(root).values())
    lock = yaml.safe_load(copy.run("git", "show", "other:dvc.lock"))["stages"]
    (oid,) = [out["md5"] for out in lock["cluster_heads"]["outs"] if out["path"] == "reports/clusters.json"]
    assert oid not in names
    flip(cached(root, oid))
    assert verify(root, fix=False) == 0 and problems(capsys.readouterr().out) == []
    copy.run("git", "checkout", "-q", "other")
    assert verify(root, fix=False) == 1
    assert any(oid[2:] in line for line in problems(capsys.readouterr().out))


@pytest.mark.slow
def test_what_is_gone_everywhere_stays_a_problem_with_its_remedy(root, capsys):
    flip(root / WEIGHTS)
    damaged = (root / WEIGHTS).read_bytes()
    cached(root, locked(root)[WEIGHTS]).unlink()
    assert verify(root, fix=True) == 1
    text = capsys.readouterr().out
    assert "`dvc pull`" in text and "all proven" not in text
    assert damaged in contents(root, "aside").values()


# --- dvc.lock


def change_hash(root: Path, stage: str, kind: str, path: str) -> None:
    """Flips one bit of one hash."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    (entry,) = [entry for entry in lock["stages"][stage][kind] if entry["path"] == path]
    entry["md5"] = f"{int(entry['md5'][0], 16) ^ 1:x}{entry['md5'][1:]}"
    (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))


FLIPS = [
    ("tokenize_pack", "outs", "data/tokens"),
    ("pretrain", "deps", "data/tokens"),
    ("final_report", "outs", "reports/final.html"),
    ("final_report", "deps", "picollm/report/page.py"),
    ("classify_heads", "outs", "reports/metrics/heads.json"),
]


FLIP_MARKS = [[pytest.mark.slow], *[[pytest.mark.exhaustive]] * (len(FLIPS) - 1)]


@pytest.mark.parametrize("flip", [pytest.param(f, marks=m) for f, m in zip(FLIPS, FLIP_MARKS, strict=True)])
def test_a_flipped_hash_in_dvc_lock_is_found_and_what_a_run_proves_is_recorded_again(root, capsys, flip):
    made = contents(root, "data", "reports", ".dvc/cache/files")
    copy = workspace.Workspace(root)
    copy.snakemake("--quiet", "all", "-R", flip[0], "--until", flip[0])  # its receipt is from this machine's last run
    good = (root / "dvc.lock").read_text()
    change_hash(root, *flip)
    assert verify(root, fix=False) == 1
    lines = problems(capsys.readouterr().out)
    assert any(f"{flip[0]}: a finished run that dvc.lock does not name" in line for line in lines), lines
    assert verify(root, fix=True) == 0
    assert yaml.safe_load((root / "dvc.lock").read_text()) == yaml.safe_load(good)
    assert contents(root, "data", "reports", ".dvc/cache/files") == made and not (root / "aside").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [("  pretrain:\n", "  pretraio:\n"), ("path: data/tokens\n      hash", "path: data/tokenr\n      hash")],
)
def test_a_renamed_stage_or_output_in_dvc_lock_is_found(root, capsys, old, new):
    text = (root / "dvc.lock").read_text()
    outs = text.index("    outs:", text.index("  tokenize_pack:")) if "path" in old else 0
    assert old in text[outs:]
    (root / "dvc.lock").write_text(text[:outs] + text[outs:].replace(old, new, 1))
    assert verify(root, fix=False) == 1
    assert "dvc.lock" in capsys.readouterr().out.split("Machine")[0]


@pytest.mark.parametrize("key", ["md5", "path", "deps", "config.yaml"])
def test_a_damaged_key_in_dvc_lock_gives_a_one_line_error(root, key):
    text = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(text.replace(f"{key}:", f"{key[:-1]}_:", 1))
    assert "dvc.lock is damaged" in refusal(verify, root, False)


def test_conflict_markers_give_a_one_line_error(root):
    (root / "dvc.lock").write_text("<<<<<<< HEAD\n" + (root / "dvc.lock").read_text())
    assert "conflict" in refusal(verify, root, False)


# --- Not damage


def test_an_edit_is_no_damage(root, capsys):
    workspace.Workspace(root).set("clusters", max_k=9)
    assert verify(root, fix=False) == 0
    text = capsys.readouterr().out
    assert "cluster_heads: parameters, code or inputs were edited since, so the next run makes it again" in text


@pytest.mark.slow
def test_a_run_that_was_killed_before_dvc_knew_keeps_its_results(root, capsys):
    copy = workspace.Workspace(root)
    copy.set("clusters", max_k=9)
    copy.snakemake("reports/final.html", PICOLLM_UNGUARDED="1")
    made = contents(root, "data", "reports")
    assert verify(root, fix=False) == 1
    lines = problems(capsys.readouterr().out)
    assert sum("a finished run that dvc.lock does not name" in line for line in lines) == len(CLUSTERS)
    assert verify(root, fix=True) == 0
    assert contents(root, "data", "reports") == made


def test_a_half_written_output_is_left_to_snakemake(root, capsys):
    marker = base64.urlsafe_b64encode(WEIGHTS.encode()).decode()
    (root / ".snakemake/incomplete" / marker).write_text("null")
    truncate(root / WEIGHTS)
    assert verify(root, fix=False) == 1
    (line,) = problems(capsys.readouterr().out)
    assert WEIGHTS in line and "`snakemake` makes it again" in line


def test_a_clone_without_data_says_so_once_per_stage(built, tmp_path, capsys):
    built.run("git", "clone", "-q", str(built.path), str(tmp_path / "clone"))
    assert verify(tmp_path / "clone", fix=False) == 1
    lines = problems(capsys.readouterr().out)
    assert len(lines) == len(yaml.safe_load((built.path / "dvc.yaml").read_text())["stages"])
    assert all("its files are not here: `dvc pull`" in line for line in lines)


def test_files_beside_the_outputs_are_named_and_never_touched(root, capsys):
    for name in ("data/notes.txt", "data/mine/a/1.txt", "data/mine/a/2.txt", "reports/old.html"):
        foreign(root / name)
    assert verify(root, fix=True) == 1
    lines = problems(capsys.readouterr().out)
    assert sorted(line.split(": ")[0].strip() for line in lines) == ["data/mine/", "data/notes.txt", "reports/old.html"]
    assert len(contents(root, "data/mine")) == 2 and not (root / "aside").exists()


# --- Beside a run, and settings


@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("name", ["run.lock", "job.lock"])
def test_a_live_run_is_left_alone(root, name, fix):
    flip(root / WEIGHTS)
    foreign(root / ".snakemake/locks/0.input.lock")
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_SH); print('held', flush=True)"
    )
    command = [sys.executable, "-c", f"{code}; input()", str(root / locks.FOLDER / name)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "held\n"
        assert "active here" in refusal(verify, root, fix)
        run.communicate("\n")
    assert (root / ".snakemake/locks/0.input.lock").exists() and not (root / "aside").exists()


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_a_cache_of_links_is_a_problem_with_its_remedy(root, capsys, kind):
    workspace.Workspace(root).run("dvc", "config", "cache.type", kind)
    assert verify(root, fix=False) == 1
    text = capsys.readouterr().out
    assert f"cache.type is {kind}" in text and "`dvc config --unset cache.type`" in text


def test_another_checkouts_picollm_is_a_problem_where_it_differs(root, built, monkeypatch, capsys):
    monkeypatch.setattr(picollm, "__file__", str(built.path / "picollm/__init__.py"))
    assert verify(root, fix=False) == 0
    append(root / "picollm/cli.py")
    assert verify(root, fix=False) == 1
    assert "cli.py differs from this checkout's" in capsys.readouterr().out


def test_an_unfinished_merge_is_named(root, capsys):
    copy = workspace.Workspace(root)
    copy.set("clusters", max_k=8)
    copy.commit("mine")
    copy.run("git", "merge", "other", ok=False)
    copy.run("git", "checkout", "--ours", "--", ".")
    assert verify(root, fix=False) == 1
    assert "config.yaml: git's merge is not finished" in capsys.readouterr().out
