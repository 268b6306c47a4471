"""Measures the overhead of the two drivers, and its growth with the number of stages.

    python benchmarks/pipeline.py                       # about ten minutes on two cores
    python benchmarks/pipeline.py --rounds 1 --stages 12

It uses temporary repositories with this project's Snakefile and machinery and N synthetic rules in a chain of short
jobs, committed on two branches that differ in every artefact. Timed in interleaved rounds:

    no-op snakemake    nothing to do
    no-op dvc repro    nothing to do
    sync               `picollm sync` after `git checkout` of the other branch: all data and records change
    snakemake, stage   (run of the last 6 stages - no-op) / 6: pure overhead, because the jobs write only some bytes
    dvc repro, stage   the same with `dvc repro`

Median, minimum and maximum of the rounds, in seconds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import standin
import workspace
from workspace import Workspace

RULE = """
rule stage_{i}:
    input:
        {source}
    output:
        "data/stage_{i}.bin",
    log:
        "logs/stage_{i}.log",
    params:
        cfg=sections("report"),
        code=fingerprint("stage_{i}"),
    script:
        "../workflow_scripts/stage_{i}.py"
"""
LAST = 6
TARGET = "data/stage_{last}.bin"


def repository(path: Path, stages: int) -> Workspace:
    """Creates N rules, each reading the previous one's output, on the branches `one` and `two`, and runs both."""
    project = workspace.create(path)
    for old in [*(path / "workflow_scripts").glob("*.py"), *(path / "rules").glob("*.smk")]:
        if old.name != "common.smk":
            old.unlink()
    rules = []
    for i in range(stages):
        script = path / f"workflow_scripts/stage_{i}.py"
        script.write_text('"""A stage."""\n\nfrom picollm.files import write_text\n')
        rules.append(RULE.format(i=i, source=f'"data/stage_{i - 1}.bin",' if i else ""))
    (path / "rules/stages.smk").write_text("\n".join(rules))
    standin.install(path)
    snakefile = (path / "Snakefile").read_text().splitlines(keepends=True)
    kept = [line for line in snakefile if not (line.startswith("include:") and "common" not in line)]
    text = "".join(kept).replace('"reports/final.html"', f'"{TARGET.format(last=stages - 1)}"')
    text = text.replace('include: "rules/common.smk"\n', 'include: "rules/common.smk"\ninclude: "rules/stages.smk"\n')
    (path / "Snakefile").write_text(text)
    project.picollm("dvc-yaml")
    for branch in ("one", "two"):
        project.run("git", "checkout", "-q", "-b", branch)
        project.set("report", title=branch)
        for name, data in standin.expected(path).items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(data)
        project.run("dvc", "commit", "-q", "-f")
        project.picollm("sync")
        project.commit(branch)
    return project


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(project: Workspace, stages: int, turn: int) -> dict[str, float]:
    """Runs one round, which changes nothing in the repository except the branch."""
    seconds_of = {
        "no-op snakemake": timed(lambda: project.snakemake("--quiet", "all")),
        "no-op dvc repro": timed(lambda: project.run("dvc", "repro")),
    }
    branch = project.run("git", "branch", "--show-current").strip()
    project.run("git", "checkout", "-q", "one" if branch == "two" else "two")
    seconds_of["sync"] = timed(lambda: project.picollm("sync"))
    for driver, command in {"snakemake": ("snakemake", "--cores", "all"), "dvc repro": ("dvc", "repro")}.items():
        script = project.path / f"workflow_scripts/stage_{stages - LAST}.py"
        script.write_text(f"{script.read_text()}# {turn}\n")
        seconds = timed(lambda command=command: project.run(*command))
        seconds_of[f"{driver}, stage"] = (seconds - seconds_of[f"no-op {driver}"]) / LAST
    project.run("git", "checkout", "-q", "--", ".")
    project.picollm("sync")
    return seconds_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", type=int, nargs="+", default=[12, 40, 120])
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="picollm-benchmark-"))
    try:
        projects = {n: repository(folder / str(n), n) for n in arguments.stages}
        times: dict[tuple[str, int], list[float]] = {}
        for turn in range(arguments.rounds):
            for n, project in projects.items():
                measured = measure(project, n, turn)
                print(f"round {turn + 1}, {n} stages:", *(f"{s:.2f}" for s in measured.values()), file=sys.stderr)
                for name, seconds in measured.items():
                    times.setdefault((name, n), []).append(seconds)
    finally:
        shutil.rmtree(folder)
    print(f"{'seconds':20} {'stages':>6} {'median':>7} {'least':>7} {'most':>7}  growth")
    for (name, n), values in sorted(times.items()):
        middle, first = statistics.median(values), statistics.median(times[name, arguments.stages[0]])
        growth = f"{middle / first:.2f}x for {n / arguments.stages[0]:.1f}x the stages" if middle != first else ""
        print(f"{name:20} {n:6} {middle:7.2f} {min(values):7.2f} {max(values):7.2f}  {growth}")


if __name__ == "__main__":
    main()
