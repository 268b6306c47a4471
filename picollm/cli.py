"""The `picollm` command: what people do besides running the pipeline."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from picollm.errors import PicollmError


def dvc_yaml(arguments: argparse.Namespace) -> None:
    """Write dvc.yaml from the rules."""
    # The Snakefile itself writes it, because only Snakemake knows its rules; --list-rules reads it and runs nothing.
    environment = os.environ | {"PICOLLM_WRITE_DVC_YAML": "1"}
    command = [sys.executable, "-m", "snakemake", "--list-rules"]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise PicollmError(done.stderr.strip().splitlines()[-1].removeprefix("picollm: "))


def track(arguments: argparse.Namespace) -> None:
    """Record in DVC what Snakemake has finished."""
    from picollm.pipeline.track import track as commit

    stages = commit(Path.cwd())
    print("DVC: recorded " + (", ".join(stages) if stages else "nothing new"), file=sys.stderr)


def summary(arguments: argparse.Namespace) -> None:
    """What the last run learned, in five lines."""
    from picollm.report.summary import five_lines

    print("\n".join(five_lines(Path("reports"))))


COMMANDS = {"dvc-yaml": dvc_yaml, "track": track, "summary": summary}


def main() -> None:
    parser = argparse.ArgumentParser(prog="picollm", description=__doc__)
    verbs = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        verbs.add_parser(name, help=function.__doc__.lower(), description=function.__doc__)
    arguments = parser.parse_args()
    try:
        COMMANDS[arguments.command](arguments)
    except PicollmError as error:
        sys.exit(f"picollm: {error}")


if __name__ == "__main__":
    main()
