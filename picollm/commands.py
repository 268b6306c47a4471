"""Implementations of the `picollm` commands; picollm.cli defines their names, options and groups."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from picollm.errors import PicollmError, reason_of
from picollm.outputs import new_file, new_folder
from picollm.wording import count

TOKENS = "data/tokens/manifest.json"

# Each command imports what it needs: DVC alone takes half a second.


def dvc_yaml(arguments: argparse.Namespace) -> None:
    """Write dvc.yaml from the rules. Needed after an edit of rules/*.smk, of a script's imports, or of a path in
    config.yaml."""
    write_dvc_yaml()


def write_dvc_yaml() -> None:
    # The Snakefile itself writes it, because only Snakemake knows its rules; --list-rules reads it and runs nothing.
    environment = os.environ | {"PICOLLM_WRITE_DVC_YAML": "1"}
    command = [sys.executable, "-m", "snakemake", "--list-rules"]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise PicollmError(reason_of(done.stderr))


def preset(arguments: argparse.Namespace) -> None:
    """Write config.yaml from a preset, and dvc.yaml with it, and list the changed values; without a name, list the
    presets."""
    from picollm import presets

    if arguments.name is None:
        print(*(f"{name:14} {presets.about(name)}" for name in presets.names()), sep="\n")
        return
    changes = presets.write_preset(arguments.name, Path("config.yaml"), arguments.force)
    print(f"config.yaml: preset {arguments.name}, {count(len(changes), 'value')} changed", *changes, sep="\n  ")
    if Path("Snakefile").exists():
        write_dvc_yaml()  # its stages list the files that config.yaml names


def config_docs(arguments: argparse.Namespace) -> None:
    """Write the generated pages of docs/ (configuration, commands, files, glossary) and docs/config.schema.json.

    Needed after an edit of picollm/config.py, a preset, a command's options, a rule or picollm/report/glossary.py.
    """
    from picollm import reference
    from picollm.files import write_text

    for path, text in reference.pages(Path.cwd()).items():
        write_text(path, text)


def track(arguments: argparse.Namespace) -> None:
    """Record in DVC the results of finished rules that dvc.lock does not list yet.

    Every run of Snakemake does this at its end; it is needed manually only if a run did not reach its end.
    """
    from picollm.pipeline import locks, sync

    with locks.hold(Path.cwd()):
        stages = sync.track(Path.cwd())
    print("DVC: recorded " + (", ".join(stages) if stages else "nothing new"), file=sys.stderr)


def sync(arguments: argparse.Namespace) -> None:
    """Bring data, dvc.lock and Snakemake's records back in line after git checkout, dvc pull or a kill.

    Finished runs that DVC has not seen are recorded; data that dvc.lock lists is restored from DVC's cache; Snakemake's
    records are updated for everything that DVC considers unchanged; files that neither dvc.lock nor a finished run
    accounts for are moved to aside/, never deleted, and recreated by the next run. Every run does this automatically
    when it finds a mismatch.
    """
    from picollm.pipeline import locks, sync

    if arguments.dry_run:
        sync.check(Path.cwd())
        print("picollm: data, dvc.lock and Snakemake's records agree", file=sys.stderr)
    else:
        with locks.hold(Path.cwd()):
            sync.sync(Path.cwd())


def verify(arguments: argparse.Namespace) -> None:
    """Rehash everything, compare artefacts, manifests, dvc.lock and DVC's cache, and report what is wrong.

    Also reports leftovers of killed runs, settings that break things, and this machine. Exit code 1 on any problem.
    """
    from picollm.pipeline.verify import verify

    sys.exit(verify(Path.cwd(), fix=arguments.fix))


def show(arguments: argparse.Namespace) -> None:
    """Show a file's origin: rule, inputs, parameters, code, versions, hardware, time, and how to recreate it."""
    from picollm.pipeline.show import show

    print(show(Path.cwd(), arguments.path))


def compare(arguments: argparse.Namespace) -> None:
    """Compare two commits on one HTML page: metrics with intervals, parameters, changed head labels, figures."""
    from picollm.report.compare import compare

    print(compare(Path.cwd(), arguments.old, arguments.new, new_file(arguments.output)))


def data_inspect(arguments: argparse.Namespace) -> None:
    """Describe packed tokens or a corpus, with decoded samples."""
    from picollm.data import inspection

    print(inspection.inspect(Path(arguments.path)))


def data_verify(arguments: argparse.Namespace) -> None:
    """Verify that packed tokens match their manifest and each other. Exit code 1 on any problem."""
    from picollm.data import inspection

    problems, counts = inspection.verify(Path(arguments.path))
    verdict = count(len(problems), "problem") if problems else "all as in the manifest"
    print("\n".join([*problems, f"{counts}: {verdict}"]))
    sys.exit(1 if problems else 0)


def generate(arguments: argparse.Namespace) -> None:
    """Continue a text with a trained model, token by token. The same seed gives the same text."""
    from picollm.model.generation import continuation

    model = trained(arguments.model)
    print(arguments.prompt, end="", flush=True)
    how = {"tokens": arguments.tokens, "temperature": arguments.temperature, "top_k": arguments.top_k}
    for text in continuation(model, arguments.prompt, **how, seed=arguments.seed):
        print(text, end="", flush=True)
    print()


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure how well a trained model predicts a text: loss, perplexity per token and per word, bits per byte."""
    from picollm.data.corpora import articles_in
    from picollm.hardware import usable_cores
    from picollm.model.device import set_up
    from picollm.model.perplexity import perplexity

    device = set_up("auto", usable_cores())
    model = trained(arguments.model).to(device)
    result = perplexity(model, articles_in(Path(arguments.corpus), arguments.split), device)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(", ".join(f"{result[unit]:,} {unit}" for unit in ("articles", "tokens", "words", "bytes")))
    print(f"loss             {result['loss']:.4f} nats per token")
    print(
        f"perplexity       {readable(result['perplexity'])} per token, {readable(result['word_perplexity'])} per word"
    )
    print(f"bits per byte    {result['bits_per_byte']:.4f}")


def readable(value: float | None) -> str:
    """Formats a perplexity, which is None if it is too large for a number."""
    if value is None:
        return "too large a number"
    return f"{value:,.1f}" if value < 1e6 else f"{value:.1e}"


def export(arguments: argparse.Namespace) -> None:
    """Write a trained model as a folder for Hugging Face's transformers (as StableLM, which has the same layers)."""
    from picollm.model.huggingface import export

    folder = new_folder(arguments.output)
    export(trained(arguments.model), folder)
    print(f"AutoModelForCausalLM.from_pretrained({arguments.output!r})")


def trained(folder: str):
    """Loads the model in a folder, picollm's own or an exported one (StableLM's layout)."""
    from picollm.model.huggingface import load_folder

    return load_folder(Path(folder))


def analyze(arguments: argparse.Namespace) -> None:
    """Analyse the heads of a trained model: maps, statistics, labels, clusters and figures, by config.yaml's rules.

    Also measures induction and copying on repeated random tokens, and with --ablate the loss of the sentences without
    each head.
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

    config, folder = load("config.yaml"), new_folder(arguments.output)
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
    causes = causes_of(model, tokenizer, folder, device, ablate=arguments.ablate)
    print(heads_line(heads), clusters_line(metrics(clusters)), *causes, f"Written: {folder}/", sep="\n")


def seeds(arguments: argparse.Namespace) -> None:
    """Train and label several seeds of config.yaml, to separate what the recipe determines from chance."""
    from picollm.config import load
    from picollm.files import write_json
    from picollm.seed_summary import lines
    from picollm.seeds import run_seeds

    config = load("config.yaml")
    output = new_file(arguments.output)
    report = run_seeds(config, TOKENS, range(1, arguments.number + 1))
    write_json(output, report)
    print(*lines(report), f"Written: {output}", sep="\n")


def control(arguments: argparse.Namespace) -> None:
    """Compare the known heads of a public model with what this method finds in its weights."""
    import torch

    from picollm.attention.analysis import open_any
    from picollm.mechanisms.public_control import emergence_line, lines

    device = torch.device("cpu")
    for revision in arguments.revision or [None]:
        model, tokenizer = open_any(arguments.model, revision)
        if revision:
            print(emergence_line(revision, model, tokenizer.start, device), flush=True)
        else:
            print(*lines(arguments.known, model, tokenizer.start, device), sep="\n")


def optimize(arguments: argparse.Namespace) -> None:
    """Build every backend of a trained model, compare its outputs with float32, time it, and print a table.

    Backends, outputs and batch sizes are config.yaml's, or with --full all that exist. Writes engine/, benchmark.json
    and benchmark.csv into a folder.
    """
    from picollm.config import load
    from picollm.engine.optimize import optimize
    from picollm.engine.table import lines

    config, folder = load("config.yaml"), new_folder(arguments.output)
    if arguments.full:
        config["engine"]["grid"] = "full"
    report = optimize(Path(arguments.model), Path(TOKENS), folder, config)
    print(*lines(report), f"Written: {folder}/", sep="\n")


def bench(arguments: argparse.Namespace) -> None:
    """Time selected backends after the accuracy gate, without changing the pipeline's reports."""
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
    config = check(config, "the options")
    output = new_file(arguments.output) if arguments.output else None
    report, _ = measure(Path(arguments.model), Path(TOKENS), Path(arguments.engine), config)
    print(*lines(report), sep="\n")
    if output:
        write_json(output, report)


def profile(arguments: argparse.Namespace) -> None:
    """Profile a training step: record some real steps of config.yaml's training and print the shares of time."""
    from picollm.config import load
    from picollm.profiling.profile import lines, profile_training

    config = load("config.yaml")
    folder = new_folder(arguments.output)
    config["profile"] |= {key: value for key in ("tool", "steps") if (value := getattr(arguments, key)) is not None}
    report = profile_training(Path("data/model/config.json"), Path(TOKENS), folder, config)
    print(*lines(report), f"Written: {folder}/", sep="\n")


def open_report(arguments: argparse.Namespace) -> None:
    """Open the report in a browser."""
    import webbrowser

    report = Path("reports/final.html")
    if not report.exists():
        raise PicollmError(f"{report} is missing: run `make report` first")
    if not webbrowser.open(report.resolve().as_uri()):
        print(f"No browser found: open {report.resolve()} in one")


def page(arguments: argparse.Namespace) -> None:
    """Write the report of the current results; a chapter that is missing or out of date says what to run."""
    from picollm.config import load
    from picollm.report.now import page_of_now

    output = new_file(arguments.output)
    lacking = page_of_now(output, load("config.yaml"))
    print(*lacking, f"Written: {output}", sep="\n")


def bundle(arguments: argparse.Namespace) -> None:
    """Pack one zip to share: report, figures, numbers, model and their origin."""
    from picollm.report.bundle import bundle

    output = new_file(arguments.output)
    number = bundle(Path.cwd(), output)
    print(f"{output}: {number} files, {output.stat().st_size / 1e6:.1f} MB")


def status(arguments: argparse.Namespace) -> None:
    """Show the current results, what the next run would make, the last numbers, and what to type next."""
    from picollm.console.status import menu, status

    print(status())
    if arguments.command is None and sys.stdin.isatty() and sys.stdout.isatty() and (chosen := menu()):
        sys.exit(subprocess.run(chosen, shell=True).returncode)


def summary(arguments: argparse.Namespace) -> None:
    """Summarise the results of the last run in five lines."""
    from picollm.report.summary import five_lines

    print("\n".join(five_lines(Path("reports"))))
