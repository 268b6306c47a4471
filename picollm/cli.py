"""The `picollm` command: what people do besides running the pipeline. Run it in the repository's top folder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from picollm import commands
from picollm.errors import PicollmError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="picollm", description=__doc__)
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.usage, parser.epilog = "picollm [COMMAND ...]", grouped()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options = {}
    for name, function in COMMANDS.items():
        first = function.__doc__.splitlines()[0]
        options[name] = verbs.add_parser(
            name, help=first, description=function.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
    dry = "change nothing; exit code 1 where something is to be done"
    options["sync"].add_argument("-n", "--dry-run", action="store_true", help=dry)
    options["verify"].add_argument("--fix", action="store_true", help="mend what is safe to mend; nothing is deleted")
    options["show"].add_argument("path", help="an artefact, or a file that rules read")
    add = options["preset"].add_argument
    add("name", nargs="?", help="one of presets/")
    add("--force", action="store_true", help="even if config.yaml has edits that git does not hold")
    add = options["data"].add_argument
    add("action", choices=("inspect", "verify"))
    add("path", nargs="?", default="data/tokens", help="data/tokens, a file in it, or a corpus (%(default)s)")
    for name in ("generate", "evaluate", "export", "analyze", "optimize", "bench"):
        options[name].add_argument(
            "--model", default="data/model", help="a model's folder, also an exported one (%(default)s)"
        )
    add = options["generate"].add_argument
    add("--prompt", default="", help="the beginning; without one a new article begins")
    add("--tokens", type=int, default=100, help="at most so many (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time (%(default)s)")
    add("--top-k", type=int, default=50, help="draw from so many likeliest tokens; 0: from all (%(default)s)")
    add("--seed", type=int, default=1)
    add = options["evaluate"].add_argument
    add("corpus", nargs="?", default="data/corpus/test.parquet", help="any text that corpus.path takes (%(default)s)")
    add("--split", default="test", choices=("train", "validation", "test"), help="where it has splits (%(default)s)")
    add("--json", action="store_true", help="as JSON, with all digits")
    options["export"].add_argument("folder", help="written into it: model.safetensors, config.json")
    add = options["analyze"].add_argument
    add("--sentences", help="YAML like attention.sentences, or .txt (a line a sentence), .csv, .json")
    add("-o", "--output", default="analysis", help="the folder to write into (%(default)s)")
    add("--ablate", action="store_true", help="also what the sentences lose without each head; takes much longer")
    add = options["seeds"].add_argument
    add("number", type=int, help="of seeds, from 1; each takes as long as pretrain")
    add("-o", "--output", default="seeds.json", help="the file to write (%(default)s)")
    add = options["control"].add_argument
    add("known", help="gpt2 or pythia")
    add("model", help="its folder, or its name on the hub")
    add("--revision", nargs="+", help="snapshots of the hub, such as step512: one line each")
    add = options["optimize"].add_argument
    add("--full", action="store_true", help="every backend, output and batch size, and the whole validation split")
    add("-o", "--output", default="optimized", help="the folder to write into (%(default)s)")
    add = options["bench"].add_argument
    add("--backends", type=lambda text: text.split(","), help="RUNTIME-PRECISION, with commas between")
    add("--outputs", type=lambda text: text.split(","), help="of last, full, loss")
    add("--batches", type=lambda text: [int(x) for x in text.split(",")], help="sizes, with commas between")
    add("--rounds", type=int, help="interleaved ones")
    add("--engine", default="data/engine", help="the folder of the engines (%(default)s)")
    add("-o", "--output", help="a JSON file to write")
    add = options["profile"].add_argument
    add("--tool", choices=("auto", "nsys", "torch.profiler"), help="instead of profile.tool")
    add("--steps", type=int, help="instead of profile.steps")
    add("-o", "--output", default="profile", help="the folder to write into (%(default)s)")
    options["bundle"].add_argument("-o", "--output", default="picollm.zip", help="the zip to write (%(default)s)")
    add = options["compare"].add_argument
    add("old", help="a commit, tag or branch")
    add("new", help="another one, or `workspace` for the files as they lie here")
    add("-o", "--output", default="comparison.html", help="the page to write (%(default)s)")
    return parser


def grouped() -> str:
    """The commands by what they are for, with an example of each group."""
    lines = []
    for title, (example, names) in GROUPS.items():
        lines += [f"{title}   (e.g. {example})"]
        lines += [f"  {name:12} {COMMANDS[name].__doc__.splitlines()[0]}" for name in names]
        lines += [""]
    return "\n".join([*lines, "picollm COMMAND --help says more; picollm alone says where things stand."])


GROUPS = {
    "Report": ("picollm open", ("status", "open", "summary", "compare", "bundle")),
    "Pipeline": (
        "picollm show reports/heads.json",
        ("preset", "sync", "track", "verify", "show", "dvc-yaml", "config-docs"),
    ),
    "Model": (
        'picollm generate --prompt "The city"', ("generate", "evaluate", "export", "analyze", "control", "seeds")
    ),
    "Data": ("picollm data inspect", ("data",)),
    "Measure": ("picollm optimize --full", ("optimize", "bench", "profile")),
}  # fmt: skip
COMMANDS = {
    name: getattr(commands, {"open": "open_report"}.get(name, name.replace("-", "_")))
    for _, names in GROUPS.values()
    for name in names
}


def main() -> None:
    arguments = parser().parse_args()
    try:
        if not Path("Snakefile").exists():
            raise PicollmError(f"{Path.cwd()} has no Snakefile: run picollm in the repository's top folder")
        COMMANDS[arguments.command or "status"](arguments)
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


if __name__ == "__main__":
    main()
