"""The `picollm` command: what people do besides running the pipeline. Run it in the repository's top folder."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from picollm.errors import PicollmError

# Each command imports what it needs: DVC alone takes half a second.


def dvc_yaml(arguments: argparse.Namespace) -> None:
    """Write dvc.yaml from the rules. Needed after an edit of rules/*.smk, of a script's imports, or of corpus.path."""
    # The Snakefile itself writes it, because only Snakemake knows its rules; --list-rules reads it and runs nothing.
    environment = os.environ | {"PICOLLM_WRITE_DVC_YAML": "1"}
    command = [sys.executable, "-m", "snakemake", "--list-rules"]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise PicollmError(done.stderr.strip().splitlines()[-1].removeprefix("picollm: "))


def track(arguments: argparse.Namespace) -> None:
    """Record in DVC what Snakemake has finished: the rules whose files it proves complete and current, and no other.

    Every run of Snakemake does this at its end; by hand it is needed where the end was not reached.
    """
    from picollm.pipeline import exclusive, sync

    with exclusive.hold(Path.cwd()):
        stages = sync.track(Path.cwd())
    print("DVC: recorded " + (", ".join(stages) if stages else "nothing new"), file=sys.stderr)


def sync(arguments: argparse.Namespace) -> None:
    """Bring data, dvc.lock and Snakemake's records to one state, after git checkout, dvc pull, or a kill.

    Runs that DVC has not seen are recorded; data that dvc.lock names is taken from DVC's cache; Snakemake is told of
    what DVC proves; what nothing proves is moved to aside/, never deleted, and made again by the next run. Snakemake
    runs this by itself when it finds data that moved; `--install-hook` lets git do so at each checkout and merge.
    """
    from picollm.pipeline import exclusive, hook, sync

    if arguments.install_hook:
        hook.install(Path.cwd())
    elif arguments.dry_run:
        sync.check(Path.cwd())
        print("picollm: data, dvc.lock and Snakemake's records agree", file=sys.stderr)
    else:
        with exclusive.hold(Path.cwd()):
            sync.sync(Path.cwd())


def verify(arguments: argparse.Namespace) -> None:
    """Hash everything again: artefacts, manifests, dvc.lock and DVC's cache against each other; name what is wrong.

    Also what kills left behind, settings that break things, and what this machine offers. Exit code 1 on any problem.
    """
    from picollm.pipeline.verify import verify

    sys.exit(verify(Path.cwd(), fix=arguments.fix))


def show(arguments: argparse.Namespace) -> None:
    """Where a file comes from: rule, inputs, parameters, code, versions, hardware, time, and how to make it again."""
    from picollm.pipeline.show import show

    print(show(Path.cwd(), arguments.path))


def compare(arguments: argparse.Namespace) -> None:
    """Two commits on one HTML page: metrics with their intervals, parameters, head labels that changed, figures."""
    from picollm.pipeline.compare import compare

    print(compare(Path.cwd(), arguments.old, arguments.new, Path(arguments.output)))


def data(arguments: argparse.Namespace) -> None:
    """Packed tokens and corpora: what is in a file, with decoded samples, and whether it is what it says."""
    from picollm.data import inspection

    path = Path(arguments.path)
    if arguments.action == "inspect":
        print(inspection.inspect(path))
        return
    problems, told = inspection.verify(path)
    print("\n".join([*problems, f"{told}: {f'{len(problems)} problems' if problems else 'all as the manifest says'}"]))
    sys.exit(1 if problems else 0)


def summary(arguments: argparse.Namespace) -> None:
    """What the last run learned, in five lines."""
    from picollm.report.summary import five_lines

    print("\n".join(five_lines(Path("reports"))))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="picollm", description=__doc__)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    options = {}
    for name, function in COMMANDS.items():
        first = function.__doc__.splitlines()[0]
        options[name] = verbs.add_parser(
            name, help=first, description=function.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
    add = options["sync"].add_argument
    add("-n", "--dry-run", action="store_true", help="change nothing; exit code 1 where something is to be done")
    add("--install-hook", action="store_true", help="let git run it after each checkout and merge in this repository")
    options["verify"].add_argument("--fix", action="store_true", help="mend what is safe to mend; nothing is deleted")
    options["show"].add_argument("path", help="an artefact, or a file that rules read")
    add = options["data"].add_argument
    add("action", choices=("inspect", "verify"))
    add("path", nargs="?", default="data/tokens", help="data/tokens, a file in it, or a corpus (%(default)s)")
    add = options["compare"].add_argument
    add("old", help="a commit, tag or branch")
    add("new", help="another one, or `workspace` for the files as they lie here")
    add("-o", "--output", default="comparison.html", help="the page to write (%(default)s)")
    return parser


COMMANDS = {
    "dvc-yaml": dvc_yaml, "track": track, "sync": sync, "verify": verify, "show": show, "compare": compare,
    "data": data, "summary": summary,
}  # fmt: skip


def main() -> None:
    arguments = parser().parse_args()
    try:
        if not Path("Snakefile").exists():
            raise PicollmError(f"{Path.cwd()} has no Snakefile: run picollm in the repository's top folder")
        COMMANDS[arguments.command](arguments)
    except PicollmError as error:
        sys.exit(f"picollm: {error}")


if __name__ == "__main__":
    main()
