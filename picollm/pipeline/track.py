"""After a Snakemake run: record in DVC exactly the stages that Snakemake proves complete and current.

`dvc commit -f` would also bless a half-written file, so a stage counts only if `snakemake --summary` knows every one of
its outputs (it has metadata of the run that made it), calls none of them pending, and its manifests verify.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import yaml

from picollm.data.files import read_json
from picollm.data.manifest import entries, prove
from picollm.errors import PicollmError


def proven_rules(summary: str, root: Path) -> list[str]:
    """Rules whose outputs `snakemake --summary` (a table: output, date, rule, log, status, plan) calls current."""
    proven: dict[str, bool] = defaultdict(lambda: True)
    for line in summary.splitlines():
        cells = line.split("\t")
        if len(cells) != 6 or cells[0] == "output_file":
            continue
        output, _, rule, log, status, plan = cells
        has_metadata = log != "-"  # every rule has a log, so a missing one means that Snakemake never saw the run
        current = has_metadata and status == "ok" and plan == "no update"
        proven[rule] &= current and intact(root / output)
    return [rule for rule, good in proven.items() if good]


def intact(path: Path) -> bool:
    """False where a manifest names a file that is missing or has other bytes; other files have nothing to compare."""
    if path.name != "manifest.json":
        return True
    try:
        for entry in entries(read_json(path)):
            prove(path, entry, "its rule")
    except PicollmError:
        return False
    return True


def run(command: list[str], root: Path) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise PicollmError(f"`{' '.join(command)}` failed: {lines[-1]}")
    return done.stdout


def track(root: Path) -> list[str]:
    """Commit every proven stage that dvc.lock does not hold yet or holds with other hashes; their names."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    summary = run(["snakemake", "--summary", "--cores", "all"], root)
    proven = [rule for rule in proven_rules(summary, root) if rule in stages]
    if not proven:
        return []
    known = json.loads(run(["dvc", "status", "--json", *proven], root))
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8")) if (root / "dvc.lock").exists() else {}
    wanted = [rule for rule in proven if rule in known or rule not in lock.get("stages", {})]
    if wanted:
        run(["dvc", "commit", "-q", "-f", "--no-relink", *wanted], root)
    return wanted
