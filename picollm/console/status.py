"""Status printed by `picollm` without a command: results, what the next run would make, last numbers, next commands."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from picollm.errors import PicollmError, reason_of
from picollm.report.summary import five_lines
from picollm.wording import count

JOB = re.compile(r"^(\w+) +\d+$", re.M)  # a row of the table printed by --dry-run
REPORT = Path("reports/final.html")


def status() -> str:
    made = REPORT.exists()
    waiting = next_run()
    lines = [f"Report: {REPORT.resolve()}" if made else "No report yet."]
    if waiting:
        lines.append(f"The next run executes {count(len(waiting), 'rule')}: {', '.join(waiting)}.")
    elif made:
        lines.append("Everything is up to date.")
    with suppress(PicollmError):  # some chapters have not run yet
        lines += ["", *five_lines(Path("reports"))]
    return "\n".join([*lines, "", *next_commands(made, bool(waiting))])


def next_commands(made: bool, waiting: bool) -> list[str]:
    if not made:
        return ["Make it:  make report      (about ten minutes)", "All commands:  picollm --help"]
    first = ["Bring it up to date:  make report"] if waiting else ["Look at it:  picollm open"]
    return [*first, "Your own model:  picollm analyze --model FOLDER", "All commands:  picollm --help"]


def next_run() -> list[str]:
    """Asks Snakemake for the rules of the next run. Raises PicollmError with its message."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--cores", "1", "--", str(REPORT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PicollmError(reason_of(done.stderr))
    return [name for name in dict.fromkeys(JOB.findall(done.stdout + done.stderr)) if name not in ("total", "all")]


def menu() -> str | None:
    """Shows the original's menu on a terminal; returns the chosen command, or None."""
    print("\n1  train and analyse\n2  analyse your own model\n3  both\n")
    answer = input("Choose (Enter: nothing): ").strip()
    if answer == "1":
        return "make report"
    if answer in ("2", "3"):
        folder = input("Folder of the model: ").strip()
        analyse = f"picollm analyze --model {folder}"
        return analyse if answer == "2" else f"make report && {analyse}"
    return None
