"""The `picollm` command: everything other than running the pipeline. Run it in the repository's top folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from picollm import commands
from picollm.errors import PicollmError, one_line

TRACEBACK = "PICOLLM_TRACEBACK"  # an environment variable


def option(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Describes an argument for argparse; each has a `help`."""
    return names, settings


def output(default: str | None, meaning: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    return option("-o", "--output", default=default, help=meaning + " (%(default)s)" * (default is not None))


def names(text: str) -> list[str]:
    """Parses names separated by commas."""
    return text.split(",")


def positive(text: str) -> int:
    """Parses a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def sizes(text: str) -> list[int]:
    """Parses whole numbers separated by commas."""
    return [positive(part) for part in text.split(",")]


TRAINED = option("--model", default="data/model",
                 help="the folder of a picollm model, or one that `picollm export` wrote (%(default)s)")  # fmt: skip
MODEL = option("--model", default="data/model", help="a folder of picollm or of transformers (%(default)s)")
ANY = option("--model", default="data/model",
             help="a folder of picollm or of transformers, or a name on the hub (%(default)s)")  # fmt: skip
FOLDER = "the folder to write into"
# The arguments of each command; its function has the same name in picollm.commands.
COMMANDS = {
    "status": [],
    "open": [],
    "page": [output("page.html", "the page to write")],
    "summary": [],
    "compare": [
        option("old", help="a commit, tag or branch"),
        option("new", help="another one, or `workspace` for the files on disk"),
        output("comparison.html", "the page to write"),
    ],
    "bundle": [output("picollm.zip", "the zip to write")],
    "preset": [
        option("name", nargs="?", help="a preset in presets/"),
        option("--force", action="store_true", help="overwrite config.yaml even if it has uncommitted edits"),
    ],
    "sync": [
        option("-n", "--dry-run", action="store_true",
               help="change nothing; exit code 1 if there is something to do"),
    ],
    "track": [],
    "verify": [option("--fix", action="store_true", help="repair what can be repaired safely; nothing is deleted")],
    "show": [option("path", help="an artefact, or a file that rules read")],
    "dvc-yaml": [],
    "config-docs": [],
    "generate": [
        TRAINED,
        option("--prompt", default="", help="the text to continue; without one, a new article is started"),
        option("--tokens", type=int, default=100, help="maximum number of new tokens (%(default)s)"),
        option("--temperature", type=float, default=0.8, help="0 always picks the likeliest token (%(default)s)"),
        option("--top-k", type=int, default=50, help="sample from the K likeliest tokens; 0: from all (%(default)s)"),
        option("--seed", type=int, default=1, help="seed of the sampling (%(default)s)"),
    ],
    "evaluate": [
        TRAINED,
        option("corpus", nargs="?", default="data/corpus/test.parquet",
               help="any text that corpus.path accepts (%(default)s)"),
        option("--split", default="test", choices=("train", "validation", "test"),
               help="used if the text has splits (%(default)s)"),
        option("--json", action="store_true", help="print JSON with all digits"),
    ],
    "export": [TRAINED, output("exported", "the folder to write model.safetensors and config.json into")],
    "analyze": [
        ANY,
        option("--sentences", help="YAML like attention.sentences, or .txt (one sentence per line), .csv, .json"),
        output("analysis", FOLDER),
        option("--ablate", action="store_true",
               help="also measure the loss of the sentences without each head; takes much longer"),
    ],
    "control": [
        option("known", help="known model: gpt2 or pythia"),
        option("--model", required=True, help="the model's folder or its name on the hub"),
        option("--revision", nargs="+", help="snapshots on the hub, such as step512; prints one line each"),
    ],
    "seeds": [
        option("number", type=positive, help="number of seeds, counted from 1; each takes as long as pretrain"),
        output("seeds.json", "the file to write"),
    ],
    "data inspect": [option("path", nargs="?", default="data/tokens",
                            help="data/tokens, a file in it, or a corpus (%(default)s)")],
    "data verify": [option("path", nargs="?", default="data/tokens",
                           help="the folder of packed tokens, or its manifest.json (%(default)s)")],
    "optimize": [
        MODEL,
        option("--full", action="store_true",
               help="every backend, output and batch size, and the whole validation split"),
        output("optimized", FOLDER),
    ],
    "bench": [
        MODEL,
        option("--backends", type=names, help="comma-separated list of RUNTIME-PRECISION"),
        option("--outputs", type=names, help="comma-separated list of last, full, loss"),
        option("--batches", type=sizes, help="comma-separated list of batch sizes"),
        option("--rounds", type=positive, help="number of interleaved rounds"),
        option("--engine", default="data/engine", help="the folder of the engines (%(default)s)"),
        output(None, "a JSON file to write"),
    ],
    "profile": [
        option("--tool", choices=("auto", "nsys", "torch.profiler"), help="overrides profile.tool"),
        option("--steps", type=positive, help="overrides profile.steps"),
        output("profile", FOLDER),
    ],
}  # fmt: skip
# The commands grouped by purpose, with an example of each group.
GROUPS = {
    "Report": ("picollm open", ("status", "open", "page", "summary", "compare", "bundle")),
    "Pipeline": ("picollm show reports/heads.json",
                 ("preset", "sync", "track", "verify", "show", "dvc-yaml", "config-docs")),
    "Model": ('picollm generate --prompt "The city"',
              ("generate", "evaluate", "export", "analyze", "control", "seeds")),
    "Data": ("picollm data inspect", ("data inspect", "data verify")),
    "Measure": ("picollm optimize --full", ("optimize", "bench", "profile")),
}  # fmt: skip


def function_of(command: str) -> Callable[[argparse.Namespace], None]:
    return getattr(commands, {"open": "open_report"}.get(command, command.replace(" ", "_").replace("-", "_")))


def first_line(command: str) -> str:
    return (function_of(command).__doc__ or "").splitlines()[0]


def grouped(groups: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    lines = []
    for title, (example, names) in groups.items():
        lines += [f"{title}   (e.g. {example})", *(f"  {name:13} {first_line(name)}" for name in names), ""]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="picollm", usage="picollm [COMMAND ...]", description=__doc__)
    top.formatter_class = as_written
    top.epilog = grouped(GROUPS) + "\n`picollm COMMAND --help` describes a command; `picollm` alone shows the status."
    top.set_defaults(command=None)
    verbs = top.add_subparsers(prog="picollm", metavar="COMMAND", help=argparse.SUPPRESS)
    families = {}
    for command, options in COMMANDS.items():
        family, _, name = command.rpartition(" ")
        if family and family not in families:  # `data`, of `data inspect`
            title = next(title for title, (_, names) in GROUPS.items() if command in names)
            made = verbs.add_parser(family, formatter_class=as_written, epilog=grouped({title: GROUPS[title]}))
            families[family] = made.add_subparsers(
                prog=f"picollm {family}", metavar="COMMAND", help=argparse.SUPPRESS, required=True
            )
        within = families.get(family, verbs)
        one = within.add_parser(name, description=function_of(command).__doc__, formatter_class=as_written)
        one.set_defaults(command=command)
        for names, settings in options:
            one.add_argument(*names, **settings)
    return top


def refuse_empty(arguments: argparse.Namespace) -> None:
    """Raises PicollmError for an empty argument, such as an unset variable of the shell; a prompt may be empty."""
    for name, value in vars(arguments).items():
        if value == "" and name != "prompt":
            raise PicollmError(f"{name} is empty: name one, or leave it out")


def main() -> None:
    arguments = parser().parse_args()
    try:
        if not Path("Snakefile").exists():
            raise PicollmError(f"{Path.cwd()} has no Snakefile: run picollm in the repository's top folder")
        refuse_empty(arguments)
        function_of(arguments.command or "status")(arguments)
        sys.stdout.flush()
    except PicollmError as error:
        sys.exit(f"picollm: {error}")
    except BrokenPipeError:  # `picollm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # the exit code of a shell for SIGPIPE
    except OSError as error:
        sys.exit(f"picollm: {error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("picollm: stopped from the keyboard", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # a bug, or a file that nobody anticipated
        if TRACEBACK in os.environ:
            raise
        fault = f"{type(error).__name__}: {one_line(error)[:300]}"
        sys.exit(f"picollm: {fault} (a bug in picollm, or a file from another version; {TRACEBACK}=1 shows where)")


if __name__ == "__main__":
    main()
