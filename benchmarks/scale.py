"""Measures the cost of many jobs: the graph, the scheduler, shares of the text.

    python benchmarks/scale.py                     # all; the part `slurm` needs root, Debian's packages and the plugin
    python benchmarks/scale.py graph slices        # these parts

    graph     `snakemake -n study/seeds-N.json`, N trainings: CPU time, clock time and memory; and `dvc status`, which
              knows stages but not jobs
    slurm     a chain of short jobs, by Slurm and by Snakemake alone: seconds per job above an empty run
    slices    the ids of a text by one job, and by two parallel jobs with half of it each; memory for a text and for one
              four times as long

CPU time is more reliable than clock time on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pipeline
import slurm
import workspace
from workspace import Workspace

from picollm.data.articles import Article, write_articles
from picollm.data.packing import write_slice

CHAIN = 6
MEASURED = "import json, resource, subprocess, sys, time\nt = time.perf_counter()\n\
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode\n\
r = resource.getrusage(resource.RUSAGE_CHILDREN)\n\
print(json.dumps([time.perf_counter() - t, r.ru_utime + r.ru_stime, r.ru_maxrss / 1024, code]))"


def measured(project: Workspace, *command: str) -> tuple[float, float, float]:
    """Runs a command: clock seconds, CPU seconds, peak MiB."""
    seconds, processors, memory, code = json.loads(project.run(sys.executable, "-c", MEASURED, *command))
    assert code == 0, command
    return seconds, processors, memory


def graph(folder: Path, jobs: Sequence[int]) -> None:
    project = workspace.create(folder / "graph")
    print(f"{'':32} {'s':>8} {'s of CPU':>9} {'MiB':>6}")
    for number in jobs:
        plan = ("snakemake", "--cores", "1", "-n", "--quiet", "all", "--", f"study/seeds-{number}.json")
        costs = measured(project, *plan)
        print(f"snakemake -n, {number:6} trainings   ", "{:8.1f} {:9.1f} {:6.0f}".format(*costs), flush=True)
    print("dvc status                      ", "{:8.1f} {:9.1f} {:6.0f}".format(*measured(project, "dvc", "status")))


def scheduler(folder: Path) -> None:
    """Times a run of the last jobs of a chain minus a run with nothing to do, divided by the number of jobs."""
    if why := slurm.missing():
        print(f"slurm: not run: {why}")
        return
    project = pipeline.repository(folder / "chain", CHAIN + 2)
    shutil.copytree(workspace.ROOT / "profiles/slurm", project.path / "profiles/slurm", dirs_exist_ok=True)
    script = project.path / f"workflow_scripts/stage_{2}.py"
    with slurm.cluster(folder / "cluster") as cluster:
        plugin = os.environ.get("PYTHONPATH", "")
        environment = cluster.environment | {"PYTHONPATH": f"{project.path}{os.pathsep}{plugin}"}
        drivers = {
            "snakemake alone": ("snakemake", "--cores", "all"),
            "by Slurm": ("snakemake", "--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1"),
        }
        for name, command in drivers.items():
            nothing = pipeline.timed(lambda c=command: project.run(*c, **environment))
            script.write_text(f"{script.read_text()}# {name}\n")
            seconds = pipeline.timed(lambda c=command: project.run(*c, **environment))
            each = (seconds - nothing) / CHAIN
            print(f"{name:16} nothing {nothing:6.1f} s, a job of a chain {each:6.1f} s", flush=True)


def write_text(path: Path, megabytes: int) -> None:
    words = "The mill of the valley turned slowly while the river rose , and nobody in the village slept . \n"
    text = " = Mill = \n\n " + words * 100
    count = megabytes * 1_000_000 // len(text)
    write_articles(path, (Article(f"Mill {n}", text.replace("slowly", f"{n} times")) for n in range(count)))


def share(path: Path, number: int, shares: int, queue) -> None:
    import resource

    write_slice(path, path.with_suffix(f".{number}-{shares}.ids"), number, shares, 1)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def shares_at_once(path: Path, shares: int) -> tuple[float, float]:
    """Returns the seconds until all shares are written, and the peak MiB of one job."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    jobs = [context.Process(target=share, args=(path, n, shares, queue)) for n in range(shares)]
    start = time.perf_counter()
    for job in jobs:
        job.start()
    memory = max(queue.get() for _ in jobs)
    for job in jobs:
        job.join()
    return time.perf_counter() - start, memory


def slices(folder: Path, megabytes: int) -> None:
    for times in (1, 4):
        path = folder / f"text-{times}.parquet"
        write_text(path, times * megabytes)
        for shares in (1, 2):
            seconds, memory = shares_at_once(path, shares)
            print(f"{times * megabytes:5} MB, {shares} jobs: {seconds:6.1f} s, {memory:5.0f} MiB each", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["graph", "slices", "slurm"])
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--megabytes", type=int, default=50)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="picollm-benchmark-"))
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores, commit", end=" ", flush=True)
    subprocess.run(["git", "-C", workspace.ROOT, "rev-parse", "--short", "HEAD"], check=True)
    try:
        if "graph" in arguments.parts:
            graph(folder, arguments.jobs)
        if "slices" in arguments.parts:
            slices(folder, arguments.megabytes)
        if "slurm" in arguments.parts:
            scheduler(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
