"""What `picollm` says without a command: what is there, what the next run would make, the last numbers, what next."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from picollm.errors import PicollmError
from picollm.report.summary import five_lines

JOB = re.compile(r"^(\w+) +\d+$", re.M)  # of the table that --dry-run prints
REPORT = Path("reports/final.html")


def status() -> str:
    made = REPORT.exists()
    waiting = next_run()
    lines = [f"Report: {REPORT.resolve()}" if made else "No report yet."]
    if waiting:
        lines.append(f"The next run makes {len(waiting)} rule{'s' * (len(waiting) > 1)}: {', '.join(waiting)}.")
    elif made:
        lines.append("All is up to date.")
    with suppress(PicollmError):  # chapters that have not run
        lines += ["", *five_lines(Path("reports"))]
    return "\n".join([*lines, "", *next_commands(made, bool(waiting))])


def next_commands(made: bool, waiting: bool) -> list[str]:
    if not made:
        return ["Make it:  make report      (about ten minutes)", "All commands:  picollm --help"]
    first = ["Bring it up to date:  make report"] if waiting else ["Look at it:  picollm open"]
    return [*first, "Your own model:  picollm analyze --model FOLDER", "All commands:  picollm --help"]


def next_run() -> list[str]:
    """The rules that the next run would make, by Snakemake itself. Raises PicollmError with what it says."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--cores", "1", "--", str(REPORT)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stderr.splitlines()
    if done.returncode:
        raise PicollmError(said[-1].removeprefix("picollm: ") if said else "snakemake --dry-run failed")
    return [name for name in dict.fromkeys(JOB.findall(done.stdout + done.stderr)) if name not in ("total", "all")]


def menu() -> str | None:
    """On a terminal: the original's choice. The command that was chosen, or None."""
    print("\n1  train and analyse\n2  analyse a model of yours\n3  both\n")
    answer = input("Choose (Enter: nothing): ").strip()
    if answer == "1":
        return "make report"
    if answer in ("2", "3"):
        folder = input("Folder of the model: ").strip()
        analyse = f"picollm analyze --model {folder}"
        return analyse if answer == "2" else f"make report && {analyse}"
    return None
