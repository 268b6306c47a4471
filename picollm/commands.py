"""What each `picollm` command does; picollm.cli has their names, options and groups."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from picollm.errors import PicollmError

TOKENS = "data/tokens/manifest.json"

# Each command imports what it needs: DVC alone takes half a second.


def dvc_yaml(arguments: argparse.Namespace) -> None:
    """Write dvc.yaml from the rules. Needed after an edit of rules/*.smk, of a script's imports, or of corpus.path."""
    # The Snakefile itself writes it, because only Snakemake knows its rules; --list-rules reads it and runs nothing.
    environment = os.environ | {"PICOLLM_WRITE_DVC_YAML": "1"}
    command = [sys.executable, "-m", "snakemake", "--list-rules"]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise PicollmError(done.stderr.strip().splitlines()[-1].removeprefix("picollm: "))


def preset(arguments: argparse.Namespace) -> None:
    """Write config.yaml from a preset, and say which values changed; without a name, list the presets."""
    from picollm import presets

    if arguments.name is None:
        print(*(f"{name:14} {presets.about(name)}" for name in presets.names()), sep="\n")
        return
    changes = presets.write_preset(arguments.name, Path("config.yaml"), arguments.force)
    print(f"config.yaml: preset {arguments.name}, {len(changes)} values changed", *changes, sep="\n  ")


def config_docs(arguments: argparse.Namespace) -> None:
    """Write the generated pages of docs/ (configuration, commands, files, glossary) and docs/config.schema.json.

    Needed after an edit of picollm/config.py, a preset, a command's options, a rule or picollm/report/glossary.py.
    """
    from picollm import reference
    from picollm.files import write_text

    for path, text in reference.pages(Path.cwd()).items():
        write_text(path, text)


def track(arguments: argparse.Namespace) -> None:
    """Record in DVC what finished runs have written and dvc.lock does not name yet.

    Every run of Snakemake does this at its end; by hand it is needed where the end was not reached.
    """
    from picollm.pipeline import locks, sync

    with locks.hold(Path.cwd()):
        stages = sync.track(Path.cwd())
    print("DVC: recorded " + (", ".join(stages) if stages else "nothing new"), file=sys.stderr)


def sync(arguments: argparse.Namespace) -> None:
    """Bring data, dvc.lock and Snakemake's records to one state, after git checkout, dvc pull, or a kill.

    Finished runs that DVC has not seen are recorded; data that dvc.lock names is taken from DVC's cache; Snakemake's
    records are updated for everything that DVC calls unchanged; files that neither dvc.lock nor a finished run accounts
    for are moved to aside/, never deleted, and made again by the next run. Every run does this by itself when it finds
    that something moved.
    """
    from picollm.pipeline import locks, sync

    if arguments.dry_run:
        sync.check(Path.cwd())
        print("picollm: data, dvc.lock and Snakemake's records agree", file=sys.stderr)
    else:
        with locks.hold(Path.cwd()):
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
    from picollm.report.compare import compare

    print(compare(Path.cwd(), arguments.old, arguments.new, Path(arguments.output)))


def data_inspect(arguments: argparse.Namespace) -> None:
    """What packed tokens or a corpus hold, with decoded samples."""
    from picollm.data import inspection

    print(inspection.inspect(Path(arguments.path)))


def data_verify(arguments: argparse.Namespace) -> None:
    """Whether packed tokens or a corpus are what they say they are. Exit code 1 on any problem."""
    from picollm.data import inspection

    problems, told = inspection.verify(Path(arguments.path))
    print("\n".join([*problems, f"{told}: {f'{len(problems)} problems' if problems else 'all as the manifest says'}"]))
    sys.exit(1 if problems else 0)


def generate(arguments: argparse.Namespace) -> None:
    """Let a trained model go on with a text, one token after another. The same seed gives the same text."""
    from picollm.model.generation import continuation

    model = trained(arguments.model)
    print(arguments.prompt, end="", flush=True)
    how = {"tokens": arguments.tokens, "temperature": arguments.temperature, "top_k": arguments.top_k}
    for text in continuation(model, arguments.prompt, **how, seed=arguments.seed):
        print(text, end="", flush=True)
    print()


def evaluate(arguments: argparse.Namespace) -> None:
    """How well a trained model predicts a text: loss, perplexity per token and per word, bits per byte."""
    from picollm.data.corpora import articles_in
    from picollm.hardware import usable_cores
    from picollm.model.device import set_up
    from picollm.model.perplexity import perplexity

    device = set_up("auto", usable_cores())
    model = trained(arguments.model).to(device)
    found = perplexity(model, articles_in(Path(arguments.corpus), arguments.split), device)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(", ".join(f"{found[unit]:,} {unit}" for unit in ("articles", "tokens", "words", "bytes")))
    print(f"loss             {found['loss']:.4f} nats per token")
    print(f"perplexity       {found['perplexity']:,.1f} per token, {found['word_perplexity']:,.1f} per word")
    print(f"bits per byte    {found['bits_per_byte']:.4f}")


def export(arguments: argparse.Namespace) -> None:
    """Write a trained model as a folder for Hugging Face's transformers (as StableLM, which has the same parts)."""
    from picollm.model.huggingface import export

    writable(Path(arguments.output))
    export(trained(arguments.model), Path(arguments.output))
    print(f"AutoModelForCausalLM.from_pretrained({arguments.output!r})")


def writable(folder: Path) -> None:
    """Make the folder now. Raises PicollmError if it can't be written: better before hours of work than after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError
    except OSError as error:
        reason = error.strerror or "no permission to write"
        raise PicollmError(f"{folder} can't be written ({reason}): name another folder") from None


def trained(folder: str):
    """The model in a folder, ours or Hugging Face's."""
    from picollm.model.huggingface import load_folder

    return load_folder(Path(folder))


def analyze(arguments: argparse.Namespace) -> None:
    """What the heads of a trained model do: maps, statistics, labels, clusters and figures, by config.yaml's rules.

    Also induction and copying on random tokens that come twice, and with --ablate what the sentences lose without each
    head.
    """
    from picollm.attention.analysis import analyse_model, causes_of, open_any
    from picollm.attention.clusters import metrics
    from picollm.attention.extraction import THREADS
    from picollm.config import load
    from picollm.model.device import set_up
    from picollm.model.foreign import ForeignModel
    from picollm.report.attention_figures import head_figures
    from picollm.report.gallery import Gallery
    from picollm.report.style import set_up as set_up_figures
    from picollm.report.summary import clusters_line, heads_line

    config, folder = load("config.yaml"), Path(arguments.output)
    writable(folder)
    sentences, style = arguments.sentences or config["attention"]["sentences"], config["attention"]["style"]
    sections = {name: config[name] for name in ("heads", "clusters")}
    model, tokenizer = open_any(arguments.model)
    threads = config["compute"]["threads"] if isinstance(model, ForeignModel) else THREADS
    device = set_up(config["compute"]["device"], threads)
    given = {"device": device, "tokenizer": tokenizer}
    heads, clusters, arrays = analyse_model(model, sentences, style, folder, **given, **sections)
    set_up_figures(config["report"]["figure_size"], config["report"]["palette"])
    gallery = Gallery(folder / "figures/manifest.json")
    head_figures(gallery, heads, None, clusters, arrays)
    gallery.finish()
    told = causes_of(model, tokenizer, folder, device, ablate=arguments.ablate)
    print(heads_line(heads), clusters_line(metrics(clusters)), *told, f"Written: {folder}/", sep="\n")


def seeds(arguments: argparse.Namespace) -> None:
    """Train and label several seeds of config.yaml: what of the heads is the recipe's, and what is chance."""
    from picollm.config import load
    from picollm.files import write_json
    from picollm.seed_summary import lines
    from picollm.seeds import run_seeds

    config = load("config.yaml")
    writable(Path(arguments.output).parent)
    report = run_seeds(config, TOKENS, range(1, arguments.number + 1))
    write_json(arguments.output, report)
    print(*lines(report), f"Written: {arguments.output}", sep="\n")


def control(arguments: argparse.Namespace) -> None:
    """What the literature knows of a public model's heads, against what this method finds in its weights."""
    import torch

    from picollm.attention.analysis import open_any
    from picollm.data.tokenizer import END_OF_TEXT
    from picollm.mechanisms.control import emergence_line, lines

    device = torch.device("cpu")
    for revision in arguments.revision or [None]:
        model, tokenizer = open_any(arguments.model, revision)
        start = tokenizer.start if tokenizer else END_OF_TEXT
        if revision:
            print(emergence_line(revision, model, start, device), flush=True)
        else:
            print(*lines(arguments.known, model, start, device), sep="\n")


def optimize(arguments: argparse.Namespace) -> None:
    """Make a trained model fast: build every backend, compare its answers with float32's, time it, print a table.

    Backends, outputs and batch sizes are config.yaml's, or with --full all there are. Written: engine/, benchmark.json
    and benchmark.csv in a folder.
    """
    from picollm.config import load
    from picollm.engine.optimize import optimize
    from picollm.engine.table import lines

    config, folder = load("config.yaml"), Path(arguments.output)
    writable(folder)
    if arguments.full:
        config["engine"]["grid"] = "full"
    report = optimize(Path(arguments.model), Path(TOKENS), folder, config)
    print(*lines(report), f"Written: {folder}/", sep="\n")


def bench(arguments: argparse.Namespace) -> None:
    """Time some backends by hand, after the accuracy gate; nothing in the pipeline's reports changes."""
    from picollm.config import check, load
    from picollm.engine.optimize import measure
    from picollm.engine.table import lines
    from picollm.files import write_json

    config = load("config.yaml")
    asked = {
        "engine": {"backends": arguments.backends, "outputs": arguments.outputs},
        "benchmark": {"batches": arguments.batches, "rounds": arguments.rounds},
    }
    config["engine"]["grid"] = "listed"
    for section, values in asked.items():
        config[section] |= {name: value for name, value in values.items() if value is not None}
    config = check(config, "picollm bench")
    writable(Path(arguments.output or ".").parent)
    report, _ = measure(Path(arguments.model), Path(TOKENS), Path(arguments.engine), config)
    print(*lines(report), sep="\n")
    if arguments.output:
        write_json(arguments.output, report)


def profile(arguments: argparse.Namespace) -> None:
    """Where a training step's time goes: record some real steps, as config.yaml trains, and print the shares."""
    from picollm.config import load
    from picollm.profiling.profile import lines, profile_training

    config = load("config.yaml")
    writable(Path(arguments.output))
    config["profile"] |= {key: value for key in ("tool", "steps") if (value := getattr(arguments, key)) is not None}
    report = profile_training(Path("data/model/config.json"), Path(TOKENS), Path(arguments.output), config)
    print(*lines(report), f"Written: {arguments.output}/", sep="\n")


def open_report(arguments: argparse.Namespace) -> None:
    """Open the report in a browser."""
    import webbrowser

    report = Path("reports/final.html")
    if not report.exists():
        raise PicollmError(f"{report} is missing: run `make report` first")
    if not webbrowser.open(report.resolve().as_uri()):
        print(f"No browser here: open {report.resolve()} in one")


def page(arguments: argparse.Namespace) -> None:
    """The report of what is there now: a chapter that is missing or out of date says what to run."""
    from picollm.config import load
    from picollm.report.now import page_of_now

    output = Path(arguments.output)
    writable(output.parent)
    lacking = page_of_now(output, load("config.yaml"))
    print(*lacking, f"Written: {output}", sep="\n")


def bundle(arguments: argparse.Namespace) -> None:
    """One zip to hand on: report, figures, numbers, model and where they come from."""
    from picollm.report.bundle import bundle

    output = Path(arguments.output)
    writable(output.parent)
    number = bundle(Path.cwd(), output)
    print(f"{output}: {number} files, {output.stat().st_size / 1e6:.1f} MB")


def status(arguments: argparse.Namespace) -> None:
    """What is there, what the next run would make, the last numbers, and what to type next."""
    from picollm.status import menu, status

    print(status())
    if arguments.command is None and sys.stdin.isatty() and sys.stdout.isatty() and (chosen := menu()):
        sys.exit(subprocess.run(chosen, shell=True).returncode)


def summary(arguments: argparse.Namespace) -> None:
    """What the last run learned, in five lines."""
    from picollm.report.summary import five_lines

    print("\n".join(five_lines(Path("reports"))))
