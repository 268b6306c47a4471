"""The `picollm` command: what people do besides running the pipeline. Run it in the repository's top folder."""

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


def option(*names: str, **how: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument as argparse takes it; each has a `help`."""
    return names, how


def output(default: str | None, what: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    return option("-o", "--output", default=default, help=what + " (%(default)s)" * (default is not None))


def several(kind: type) -> Callable[[str], list]:
    """Values with commas between them."""
    return lambda text: [kind(part) for part in text.split(",")]


MODEL = option("--model", default="data/model", help="a model's folder, also an exported one (%(default)s)")
FOLDER = "the folder to write into"
# Of each command its arguments; its function is the one of that name in picollm.commands.
COMMANDS = {
    "status": [],
    "open": [],
    "page": [output("page.html", "the page to write")],
    "summary": [],
    "compare": [
        option("old", help="a commit, tag or branch"),
        option("new", help="another one, or `workspace` for the files as they lie here"),
        output("comparison.html", "the page to write"),
    ],
    "bundle": [output("picollm.zip", "the zip to write")],
    "preset": [
        option("name", nargs="?", help="one of presets/"),
        option("--force", action="store_true", help="even if config.yaml has edits that git does not hold"),
    ],
    "sync": [
        option("-n", "--dry-run", action="store_true",
               help="change nothing; exit code 1 where something is to be done"),
    ],
    "track": [],
    "verify": [option("--fix", action="store_true", help="mend what is safe to mend; nothing is deleted")],
    "show": [option("path", help="an artefact, or a file that rules read")],
    "dvc-yaml": [],
    "config-docs": [],
    "generate": [
        MODEL,
        option("--prompt", default="", help="the beginning; without one a new article begins"),
        option("--tokens", type=int, default=100, help="at most so many (%(default)s)"),
        option("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time (%(default)s)"),
        option("--top-k", type=int, default=50, help="draw from so many likeliest tokens; 0: from all (%(default)s)"),
        option("--seed", type=int, default=1, help="of what is drawn (%(default)s)"),
    ],
    "evaluate": [
        MODEL,
        option("corpus", nargs="?", default="data/corpus/test.parquet",
               help="any text that corpus.path takes (%(default)s)"),
        option("--split", default="test", choices=("train", "validation", "test"),
               help="where it has splits (%(default)s)"),
        option("--json", action="store_true", help="as JSON, with all digits"),
    ],
    "export": [MODEL, output("exported", "the folder to write model.safetensors and config.json into")],
    "analyze": [
        MODEL,
        option("--sentences", help="YAML like attention.sentences, or .txt (a line a sentence), .csv, .json"),
        output("analysis", FOLDER),
        option("--ablate", action="store_true",
               help="also what the sentences lose without each head; takes much longer"),
    ],
    "control": [
        option("known", help="gpt2 or pythia"),
        option("--model", required=True, help="its folder, or its name on the hub"),
        option("--revision", nargs="+", help="snapshots of the hub, such as step512: one line each"),
    ],
    "seeds": [
        option("number", type=int, help="of seeds, from 1; each takes as long as pretrain"),
        output("seeds.json", "the file to write"),
    ],
    "data inspect": [option("path", nargs="?", default="data/tokens",
                            help="data/tokens, a file in it, or a corpus (%(default)s)")],
    "data verify": [option("path", nargs="?", default="data/tokens", help="as of `inspect` (%(default)s)")],
    "optimize": [
        MODEL,
        option("--full", action="store_true",
               help="every backend, output and batch size, and the whole validation split"),
        output("optimized", FOLDER),
    ],
    "bench": [
        MODEL,
        option("--backends", type=several(str), help="RUNTIME-PRECISION, with commas between"),
        option("--outputs", type=several(str), help="of last, full, loss"),
        option("--batches", type=several(int), help="sizes, with commas between"),
        option("--rounds", type=int, help="interleaved ones"),
        option("--engine", default="data/engine", help="the folder of the engines (%(default)s)"),
        output(None, "a JSON file to write"),
    ],
    "profile": [
        option("--tool", choices=("auto", "nsys", "torch.profiler"), help="instead of profile.tool"),
        option("--steps", type=int, help="instead of profile.steps"),
        output("profile", FOLDER),
    ],
}  # fmt: skip
# The commands by what they are for, with an example of each group.
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
    top.epilog = grouped(GROUPS) + "\npicollm COMMAND --help says more; picollm alone says where things stand."
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
        for names, how in options:
            one.add_argument(*names, **how)
    return top


def main() -> None:
    arguments = parser().parse_args()
    try:
        if not Path("Snakefile").exists():
            raise PicollmError(f"{Path.cwd()} has no Snakefile: run picollm in the repository's top folder")
        function_of(arguments.command or "status")(arguments)
        sys.stdout.flush()
    except PicollmError as error:
        sys.exit(f"picollm: {error}")
    except BrokenPipeError:  # `picollm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as shells call it
    except OSError as error:
        sys.exit(f"picollm: {error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("picollm: stopped from the keyboard", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # a fault of ours, or a file that nobody thought of
        if TRACEBACK in os.environ:
            raise
        what = f"{type(error).__name__}: {one_line(error)[:300]}"
        sys.exit(f"picollm: {what} (a fault of picollm, or a file of another version; {TRACEBACK}=1 shows where)")


if __name__ == "__main__":
    main()
