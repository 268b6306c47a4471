"""The workflow on a real Slurm of this machine (tests/slurm.py): `make test-slurm`. Every artefact is what one machine
gives; jobs ended by Slurm, its nodes or users are resumed; a refusal is reported in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import slurm
import standin
import workspace
import yaml
from test_interruptions import start, wish
from test_scenarios import ALL, NONE, views, wrong
from workspace import Workspace

from picollm.pipeline.receipts import files_of, md5

pytestmark = [pytest.mark.slurm]

WHERE = importlib.util.find_spec("snakemake_executor_plugin_slurm")  # Snakemake finds it on PYTHONPATH too
RUN = ("snakemake", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "2")
WAITS = """import time
from pathlib import Path
Path('logs/there').touch()
while not Path('logs/go').exists(): time.sleep(0.1)"""
SLEEPS = "import time; time.sleep(180)"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    why = slurm.missing() or (None if WHERE else "needs snakemake-executor-plugin-slurm on PYTHONPATH: make test-slurm")
    if why:
        pytest.skip(why)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(autouse=True)
def environment(cluster, monkeypatch):
    """Sets the environment of every command: the cluster's, with the plugin next to the repository's own picollm."""
    plugin = str(Path(WHERE.origin).parents[1])
    monkeypatch.setattr(Workspace, "paths", property(lambda self: f"{self.path}{os.pathsep}{plugin}"))
    path = f"{cluster.folder / 'bin'}{os.pathsep}{workspace.ENVIRONMENT['PATH']}"
    own = workspace.ENVIRONMENT | cluster.environment | {"PATH": path}
    monkeypatch.setattr(workspace, "ENVIRONMENT", own)


@pytest.fixture
def edited(built, tmp_path):
    """A copy in which cluster_heads and the rules that depend on it must run."""
    copy = built.copy(tmp_path / "copy")
    copy.set("clusters", max_k=5)
    return copy


def reached(copy: Workspace, run: subprocess.Popen | None = None, seconds: float = 300) -> None:
    """Waits until the job with `WAITS` has started."""
    deadline = time.monotonic() + seconds
    while not (copy.path / "logs/there").exists():
        assert (run is None or run.poll() is None) and time.monotonic() < deadline, run and run.communicate()[0]
        time.sleep(0.1)


def ended(run: subprocess.Popen, ok: bool = True, seconds: float = 600) -> str:
    said, _ = run.communicate(timeout=seconds)
    assert (run.returncode == 0) == ok, said
    return said


def test_every_rule_runs_as_a_job_and_a_cancelled_one_runs_again(cluster, tmp_path):
    """A run from scratch, with two slices of the corpus, gives the bytes of a build without either tool."""
    project = workspace.create(tmp_path / "project")
    standin.install(project.path)
    project.set("tokens", slices=2)
    project.picollm("dvc-yaml")
    (project.path / "logs").mkdir()
    wish(project, "within", "pretrain", WAITS)
    run = start(project, *RUN)
    reached(project, run)
    cluster.run("scancel", cluster.wait_for("pretrain", "RUNNING"))
    said = ended(run)
    assert "pretrain: FAILED: was cancelled; the same command resumes it" in said, said
    jobs = cluster.jobs().values()
    assert {rule.partition("_wildcards")[0] for state, rule in jobs if state == "COMPLETED"} >= ALL | {"tokenize_slice"}
    assert [state for state, rule in jobs if rule == "pretrain"] == ["CANCELLED", "COMPLETED"]
    assert wrong(project) == [] and views(project) == (NONE, NONE)


@pytest.mark.exhaustive
def test_the_smoke_preset_gives_the_bytes_of_a_local_run(cluster, tmp_path):
    """Runs the real rules. Measurements differ between any two runs, and so do figures, page and claims."""
    here, there = (workspace.create(tmp_path / name) for name in ("here", "there"))
    here.snakemake("--quiet", "all", "--", "reports/final.html")
    there.set("tokens", slices=2)
    there.set("attention", apart=True)
    there.set("mechanisms", slices=2)
    there.picollm("dvc-yaml")
    there.run(*RUN, "reports/final.html")
    differing = {path for path, data in artefacts(here).items() if artefacts(there).get(path) != data}
    assert {path for path in differing if not path.startswith(MEASURED)} == set()
    assert views(there) == (NONE, NONE)


# Artefacts that hold times or rates, and those that show them.
MEASURED = (
    "data/engine/", "data/profile/", "reports/benchmark", "reports/profile", "reports/training", "reports/figures/",
    "reports/final.html", "reports/metrics/benchmark", "reports/metrics/profile", "reports/metrics/training",
)  # fmt: skip


def artefacts(project: Workspace) -> dict[str, str]:
    """Returns {file: md5} of all outputs in dvc.yaml."""
    stages = yaml.safe_load((project.path / "dvc.yaml").read_text())["stages"].values()
    paths = [file for stage in stages for out in standin.written(stage) for file in files_of(project.path, out)]
    return {path: md5(project.path / path) for path in paths}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("resources", "line"),
    [
        (["slurm_partition=nowhere"], "Slurm refused the job: no such partition: `sinfo` lists them"),
        (["gpu=1", "gpu_model=h900"], "Slurm refused the job: no such GPU here: `sinfo -o %G` lists them"),
        (["mem_mb=900000"], "Slurm refused the job: more memory than any node has"),
    ],
)
def test_what_slurm_refuses_gives_a_one_line_error_with_the_knob(edited, resources, line):
    asked = [f"cluster_heads:{resource}" for resource in resources]
    said = edited.run(*RUN, "--retries", "0", "--set-resources", *asked, ok=False)
    assert f"cluster_heads: FAILED: {line}" in said and "set-resources in profiles/slurm/profile.yaml" in said
    assert "Traceback" not in said and "sbatch call" not in said, said


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("resource", "deed", "line"),
    [
        ("mem_mb=700*attempt**2", f"hold = bytearray(1_500_000_000)\n{SLEEPS}", "more than its memory: raise mem_mb"),
        ("runtime=attempt**4", SLEEPS, "longer than its time: raise runtime"),
    ],
)
def test_a_job_over_its_limit_names_the_knob_and_the_next_attempt_has_more(edited, resource, deed, line):
    wish(edited, "before", "cluster_heads", deed)  # once: not in the second attempt
    said = edited.run(*RUN, "--set-resources", f"cluster_heads:{resource}")
    assert f"cluster_heads: FAILED: took {line}" in said, said
    assert wrong(edited) == [] and views(edited) == (NONE, NONE)


@pytest.mark.exhaustive
def test_a_lost_node_is_reported_and_the_job_runs_on_another(cluster, edited):
    wish(edited, "within", "cluster_heads", WAITS)
    run = start(edited, *RUN)
    reached(edited, run)
    number = cluster.wait_for("cluster_heads", "RUNNING")
    node = cluster.run("squeue", "--noheader", "--format=%N", "--jobs", number).strip()
    cluster.lose(node)
    try:
        ended(run)
    finally:
        cluster.start_node(node)
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert wrong(edited) == [] and views(edited) == (NONE, NONE)


@pytest.mark.exhaustive
def test_two_masters_at_once_and_a_job_whose_master_died(cluster, edited):
    wish(edited, "within", "cluster_heads", WAITS)
    first = start(edited, *RUN)
    reached(edited, first)
    assert "another run is active here (process" in edited.run(*RUN, ok=False)
    first.kill()
    first.communicate()
    said = edited.run(*RUN, ok=False)
    assert "a job of an interrupted run" in said and "scancel" in said and "Traceback" not in said
    (edited.path / "logs/go").touch()
    cluster.wait_for("cluster_heads", "COMPLETED")
    ended(start(edited, *RUN))
    assert wrong(edited) == [] and views(edited) == (NONE, NONE)


@pytest.mark.exhaustive
def test_a_job_that_waited_in_the_queue_while_its_run_died_does_nothing(cluster, edited):
    """A job waits for a reserved cluster until another run has begun to work on the same files."""
    sleep = ("sbatch", "--parsable", "--exclusive", "--wrap", "sleep 600")
    holders = [cluster.run(*sleep, "-w", node).strip() for node in slurm.NODES]
    first = start(edited, *RUN)
    orphan = cluster.wait_for("cluster_heads", "PENDING")
    first.kill()
    first.communicate()
    wish(edited, "within", "cluster_heads", WAITS)
    second = start(edited, *RUN)
    deadline = time.monotonic() + 120
    while len([1 for state, rule in cluster.jobs("PENDING").values() if rule == "cluster_heads"]) < 2:
        assert second.poll() is None and time.monotonic() < deadline, second.communicate()[0]
        time.sleep(0.2)
    cluster.run("scancel", *holders)
    reached(edited, second)
    while cluster.jobs()[orphan][0] in ("PENDING", "RUNNING", "COMPLETING"):
        time.sleep(0.2)
    assert cluster.jobs()[orphan][0] == "FAILED"
    log = (edited.path / f"logs/slurm/rule_cluster_heads/{orphan}.log").read_text()
    assert "has ended and another has begun" in log, log
    (edited.path / "logs/go").touch()
    ended(second)
    assert wrong(edited) == [] and views(edited) == (NONE, NONE)


@pytest.mark.exhaustive
def test_config_and_code_edited_while_jobs_wait_are_the_next_runs(cluster, edited):
    """Later jobs use the run's configuration; one whose code was edited stops."""
    wish(edited, "within", "cluster_heads", WAITS)
    run = start(edited, *RUN, "reports/clusters.json", "reports/findings.json")
    reached(edited, run)
    edited.set("heads", seed=2)  # of state_findings, which runs later
    (edited.path / "logs/go").touch()
    ended(run)
    receipt = json.loads((edited.path / ".snakemake/picollm/receipts/state_findings.json").read_text())
    assert receipt["params"]["heads"]["seed"] == 1
    assert "state_findings" in edited.planned() and "state_findings" in edited.changed()


@pytest.mark.exhaustive
def test_a_slice_that_fails_leaves_the_others_and_one_command_goes_on(cluster, built, tmp_path):
    project = built.copy(tmp_path / "copy")
    project.set("tokens", slices=3)
    wish(project, "before", "tokenize_slice", "from picollm.errors import PicollmError\nraise PicollmError('no luck')")
    said = project.run(*RUN, "--retries", "0", "data/tokens/manifest.json", ok=False)
    assert "tokenize_slice: FAILED: no luck" in said and "Traceback" not in said, said
    kept = list((project.path / ".snakemake/picollm/slices").glob("*.ids"))
    assert len(kept) == 2
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    wish(project, "before", "tokenize_pack", WAITS)
    run = start(project, *RUN, "data/tokens/manifest.json")
    reached(project, run)
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps
    (project.path / "logs/go").touch()
    ended(run)
    ended(start(project, *RUN))
    assert wrong(project) == [] and views(project) == (NONE, NONE)


@pytest.mark.exhaustive
def test_training_on_two_nodes_gives_way_to_another_job_and_goes_on_exactly(cluster, tmp_path):
    """torchrun's agents run on both nodes of an allocation, which a partition of higher priority then preempts."""
    project = workspace.create(tmp_path / "project")
    project.set("pretrain", processes=2, length=400, checkpoint_every=20, validate_every=200)
    project.snakemake("--quiet", "all", "--", "data/tokens/manifest.json")
    alone = project.copy(tmp_path / "alone")
    nodes = [f"pretrain:{resource}" for resource in ("nodes=2", "tasks=2", "mpi=srun", "tasks_per_gpu=0")]
    run = start(project, *RUN, "--retries", "0", "--set-resources", *nodes, "--", "data/model/model.safetensors")
    deadline = time.monotonic() + 600
    while not list((project.path / "checkpoints").glob("*/step-*.json")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0]
        time.sleep(0.1)
    number = cluster.wait_for("pretrain", "RUNNING")
    cluster.run("sbatch", "--partition", "urgent", "--exclusive", "--nodes", "2", "--wait", "--wrap", "sleep 1")
    said = ended(run, seconds=1200)
    assert "FAILED" not in said, said
    assert cluster.jobs()[number] == ("COMPLETED", "pretrain")
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", number)
    training = json.loads((project.path / "reports/training.json").read_text())
    assert len(training["resumed_at"]) == 1 and 0 < training["resumed_at"][0] < 400
    alone.snakemake("--quiet", "all", "--", "data/model/model.safetensors")
    for name in ("model", "last"):
        weights = [(one.path / f"data/model/{name}.safetensors").read_bytes() for one in (project, alone)]
        assert weights[0] == weights[1]
