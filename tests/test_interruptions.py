"""Events that end or disturb a run: kills, second runs, edits during the run, full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import workspace
import yaml
from refusals import said
from test_scenarios import CLUSTERS, NONE, views, wrong

GROUP = "import os, signal; os.killpg(os.getpgrp(), signal.SIGKILL)"  # the whole run, DVC included
JOB = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
OF_RUN = "int(os.environ['PICOLLM_RUN'].split()[1])"  # process 123 on ...
RUNNER = f"import os, signal, time; os.kill({OF_RUN}, signal.{{name}}); time.sleep({{seconds}})"


@pytest.fixture
def edited(built, tmp_path):
    """A copy in which cluster_heads and the rules that depend on it must run."""
    copy = built.copy(tmp_path / "copy")
    copy.set("clusters", max_k=5)
    return copy


def wish(copy: workspace.Workspace, when: str, rule: str, text: str) -> None:
    (copy.path / "logs" / f"{when}-{rule}.py").write_text(text)


def start(copy: workspace.Workspace, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=copy.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=workspace.ENVIRONMENT | {"PYTHONPATH": copy.paths},
    )  # fmt: skip


SNAKEMAKE = ("snakemake", "--cores", "all", "--quiet", "all")
REPRO = ("dvc", "repro")


def locked(copy: workspace.Workspace) -> dict:
    return yaml.safe_load((copy.path / "dvc.lock").read_text())["stages"]


def finish(copy: workspace.Workspace, driver: tuple[str, ...]) -> None:
    copy.run(*driver)
    assert wrong(copy) == []
    assert views(copy) == (NONE, NONE)


KILLS = [
    (driver, when, rule, whom)
    for driver in (SNAKEMAKE, REPRO)
    for when in ("before", "within", "after")
    for rule in ("cluster_heads",)
    for whom in ("GROUP", "JOB")
]


def marks(kill: tuple) -> list:
    driver, when, _, whom = kill  # the others end like the same moment of the other driver, or like the whole group
    common = whom == "GROUP" if driver == SNAKEMAKE else (when, whom) == ("within", "JOB")
    return [pytest.mark.slow if common else pytest.mark.exhaustive]


@pytest.mark.parametrize(
    ("driver", "when", "rule", "whom"),
    [pytest.param(*kill, id="-".join([kill[0][0], *kill[1:]]), marks=marks(kill)) for kill in KILLS],
)
def test_killed_at_any_moment_it_goes_on_to_the_right_bytes(edited, driver, when, rule, whom):
    before = locked(edited)
    wish(edited, when, rule, {"GROUP": GROUP, "JOB": JOB}[whom])
    killed = start(edited, *driver)
    killed.communicate(timeout=120)
    assert killed.returncode != 0
    assert not list((edited.path / "logs").glob("*-*.py")), "the job was not reached"
    assert locked(edited)[rule] == before[rule], "nothing of an unfinished rule is recorded"
    edited.picollm("track")
    assert locked(edited)[rule] == before[rule]
    finish(edited, SNAKEMAKE if when == "within" else driver)


@pytest.mark.slow
def test_sigterm_waits_for_the_job_and_loses_nothing(edited):
    wish(edited, "before", "cluster_heads", RUNNER.format(name="SIGTERM", seconds=1))
    run = start(edited, *SNAKEMAKE)
    run.communicate(timeout=120)
    finish(edited, SNAKEMAKE)


@pytest.mark.slow
def test_a_job_that_a_killed_run_left_behind_is_not_joined_by_another(edited):
    wish(edited, "before", "cluster_heads", RUNNER.format(name="SIGKILL", seconds=6))
    run = start(edited, *SNAKEMAKE)
    run.wait(timeout=120)
    text = edited.run(*SNAKEMAKE, ok=False)
    assert "picollm: a job of an interrupted run (" in text and "is still active here" in text
    assert "Traceback" not in text
    run.communicate(timeout=60)
    finish(edited, SNAKEMAKE)


@pytest.mark.slow
def test_dvc_killed_between_a_stage_and_its_record(edited):
    # A watcher outlives the job and kills DVC as soon as the stage's Snakemake ends.
    watcher = (
        "import os, signal, time\n"
        "snakemake, dvc = {}, {}\n"
        "while os.path.exists(f'/proc/{{snakemake}}') and open(f'/proc/{{snakemake}}/stat').read().split()[2] != 'Z':\n"
        "    time.sleep(0.001)\n"
        "os.kill(dvc, signal.SIGKILL)\n"
    )
    text = (
        "import os, subprocess, sys\n"
        f"snakemake = {OF_RUN}\n"
        "parent = lambda pid: int(open(f'/proc/{pid}/stat').read().split()[3])\n"
        "dvc = snakemake\n"
        "while b'dvc' not in open(f'/proc/{dvc}/cmdline', 'rb').read().split(b'\\0')[1]: dvc = parent(dvc)\n"
        f"subprocess.Popen([sys.executable, '-c', {watcher!r}.format(snakemake, dvc)], start_new_session=True)\n"
    )
    wish(edited, "after", "cluster_heads", text)
    run = start(edited, *REPRO)
    run.wait(timeout=120)
    assert run.returncode != 0
    run.communicate(timeout=60)
    finish(edited, SNAKEMAKE)


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(SNAKEMAKE, REPRO, marks=pytest.mark.slow, id="dvc after snakemake"),
     pytest.param(REPRO, SNAKEMAKE, marks=pytest.mark.slow, id="snakemake after dvc"),
     pytest.param(SNAKEMAKE, SNAKEMAKE, marks=pytest.mark.exhaustive, id="snakemake twice"),
     pytest.param(REPRO, REPRO, marks=pytest.mark.exhaustive, id="dvc twice")],
)  # fmt: skip
def test_two_at_once_the_second_says_so_and_the_first_ends_well(edited, first, second):
    wish(edited, "before", "cluster_heads", "import time\nfrom pathlib import Path\nPath('logs/there').touch()\n"
         "while not Path('logs/go').exists(): time.sleep(0.05)")  # fmt: skip
    run = start(edited, *first)
    deadline = time.monotonic() + 60
    while not (edited.path / "logs/there").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    text = edited.run(*second, ok=False)
    assert "another run is active here (process" in text or "is busy, it is being blocked by" in text, text
    assert "Traceback" not in text
    edited.run("dvc", "status", ok=None)
    (edited.path / "logs/go").touch()
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    finish(edited, second)


@pytest.mark.slow
def test_a_lock_that_a_kill_left_is_no_obstacle(edited):
    locks = edited.path / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text(f"{edited.path}/reports/clusters.json\n")
    finish(edited, SNAKEMAKE)


# --- Edits during the run


def edit(rule: str, key: str, value: object) -> str:
    """Returns Python code that edits config.yaml, like a user who already prepares the next run."""
    return (
        "import yaml\nfrom pathlib import Path\npath = Path('config.yaml')\nconfig = yaml.safe_load(path.read_text())\n"
        f"config[{rule!r}][{key!r}] = {value!r}\npath.write_text(yaml.safe_dump(config, sort_keys=False))\n"
    )


@pytest.mark.slow
def test_a_job_does_not_start_with_other_code_than_its_run(edited):
    script = edited.path / "workflow_scripts/draw_figures.py"
    text = script.read_bytes()
    wish(edited, "before", "cluster_heads", f"open({str(script)!r}, 'a').write('# the next version')")
    said = edited.run(*SNAKEMAKE, ok=False)
    assert "draw_figures: FAILED: the code was edited after the run began" in said
    script.write_bytes(text)  # the edit is reverted: nothing false was recorded
    finish(edited, SNAKEMAKE)


@pytest.mark.slow
@pytest.mark.parametrize("driver", [SNAKEMAKE, REPRO], ids=["snakemake", "dvc"])
def test_an_edit_of_a_rules_own_section_while_it_runs(edited, driver):
    text = (edited.path / "config.yaml").read_text()
    wish(edited, "before", "cluster_heads", edit("clusters", "max_k", 9))
    said = edited.run(*driver, ok=None)
    if driver is REPRO:  # DVC hashes parameters after the stage, so it would record the result under max_k = 9
        assert "cluster_heads: FAILED: config.yaml, the code or an input was edited during the run" in said
    assert views(edited) == (CLUSTERS, CLUSTERS)
    (edited.path / "config.yaml").write_text(text)
    finish(edited, driver)


# --- Full disk, damaged records


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_cache_on_a_full_disk(edited):
    cache = edited.path / ".dvc/cache"
    kept = edited.path / ".dvc/kept"
    cache.rename(kept)
    cache.mkdir()
    size = sum(file.stat().st_blocks * 512 for file in kept.rglob("*") if file.is_file()) // 4096 * 4096
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + 2**18},nr_inodes=0", "tmpfs", str(cache)])
    if done.returncode:
        pytest.skip("this container may not mount")
    try:
        shutil.copytree(kept, cache, dirs_exist_ok=True)
        with open(cache / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(b"x" * 4096)
        text = edited.run(*SNAKEMAKE)
        lines = [line for line in text.splitlines() if line.startswith("picollm: ")]
        assert len(lines) == 1 and "No space left on device" in lines[0], text
        assert wrong(edited) == [], "the run itself is unharmed"
        (cache / "ballast").unlink()
        subprocess.run(["mount", "-o", f"remount,size={size + 2**21}", str(cache)], check=True)
        edited.picollm("track")
        assert views(edited) == (NONE, NONE) and wrong(edited) == []
    finally:
        subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda text: text[: len(text) // 2] + "\n  - [", "dvc.lock is damaged", marks=pytest.mark.slow),
        pytest.param(
            lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n",
            "dvc.lock contains git's merge conflict",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(lambda text: "", "dvc.lock is damaged", marks=pytest.mark.exhaustive),
        pytest.param(lambda text: "schema: '2.0'\nstages: 3\n", "dvc.lock is damaged", marks=pytest.mark.exhaustive),
        pytest.param(
            lambda text: text.replace("md5: ", "md5: \0", 1), "dvc.lock is damaged", marks=pytest.mark.exhaustive
        ),
    ],
    ids=["cut", "merge conflict", "empty", "no table", "not text"],
)
def test_a_damaged_lock_stops_everything_with_one_sentence(edited, damage, words):
    lock = edited.path / "dvc.lock"
    good = lock.read_text()
    files = {path: path.read_bytes() for path in Path(edited.path, "reports").rglob("*.*")}
    lock.write_text(damage(good))
    for command in (SNAKEMAKE, ("python", "-m", "picollm.cli", "track")):
        line = said(edited.run(*command, ok=False))
        assert words in line and "picollm sync" in line
    assert {path: path.read_bytes() for path in files} == files
    edited.run("git", "checkout", "-q", "HEAD", "--", "dvc.lock")
    assert edited.changed() == {"cluster_heads"} and edited.planned() == CLUSTERS
