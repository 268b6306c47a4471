"""Shared by all files of rules. Provides the checked config, the code fingerprint and one-line errors."""

import os
import subprocess
import sys
from pathlib import Path

from picollm import config as picollm_config
from picollm import inputs as files
from picollm.attention.sentences import CATEGORIES, load_sentences
from picollm.cluster import resources as scheduled
from picollm.cluster.given import give, given
from picollm.console import watch
from picollm.errors import PicollmError
from picollm.pipeline import fingerprint as code
from picollm.pipeline import locks, seal
from picollm.pipeline.dvc_yaml import check_dvc_yaml, check_writable, stages_of
from picollm.pipeline.receipts import artefact
from picollm.report.metric_files import METRIC_FILES
from picollm.seed_summary import SECTIONS as SEED_SECTIONS

ROOT = Path(workflow.basedir)


def stop(error):
    """Prints one line and exits with code 1; an exception would give a traceback or several lines of Snakemake's."""
    print(f"picollm: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


try:
    picollm_config.refuse_overrides(dict(config))
    if workflow.is_main_process:
        CONFIG, FINGERPRINTS = picollm_config.load("config.yaml"), {}
    else:  # a job on another machine
        CONFIG, FINGERPRINTS = map(given(ROOT).get, ("config", "code"))
    CORPUS_FILES = files.corpus_files(CONFIG["corpus"])
    MODEL_FILES = files.model_files(CONFIG["model"])
    TOKENIZER_FILES = files.tokenizer_files(CONFIG["model"])
    SEED_FILES = files.seed_files(CONFIG["report"])
    files.refuse_names("attention.sentences", [CONFIG["attention"]["sentences"]])
    if workflow.is_main_process:  # before hours of training, not after
        load_sentences(CONFIG["attention"]["sentences"])
except PicollmError as error:
    stop(error)
except OSError as error:
    stop(f"{error.filename}: {error.strerror}: check the paths in config.yaml")


SIZE = scheduled.size_of(CONFIG, CORPUS_FILES)


def sections(*names):
    """The `cfg` param of a rule: config sections in one dict, because Snakemake compares params without names."""
    return {name: CONFIG[name] for name in names}


def fingerprint(rule):
    """The `code` param of a rule: the sha256 of its script and of every picollm module that it imports."""
    value = FINGERPRINTS.get(rule) or code.fingerprint(code.rule_code(rule, ROOT), ROOT)
    return FINGERPRINTS.setdefault(rule, value)


def cpus(rule, here=None):
    """Threads of a rule: on a cluster those it can use; locally all by default, so that nothing runs next to it."""
    if workflow.is_main_process and not watch.on_cluster(workflow):
        return here or workflow.cores
    return scheduled.threads_of(rule, CONFIG)


def needs(rule):
    """Resources that a rule requests from a scheduler."""
    return scheduled.resources(rule, CONFIG, SIZE)


def stages():
    """Snakemake's rules as stages of picollm.pipeline.dvc_yaml."""
    return stages_of(workflow.rules, ROOT, CONFIG["corpus"])


# Shares of a rule's work, each a separate job if the configuration requests it.
SLICES = ".snakemake/picollm/slices/{slice}.ids"
ABLATED = ".snakemake/picollm/ablated/{slice}.npz"
EXTRACTED = ".snakemake/picollm/extracted/{category}.npz"


def shares(pattern, section):
    """The files that a rule combines; none if it does all the work itself."""
    count = CONFIG[section]["slices"]
    return expand(pattern, slice=range(count)) if count > 1 else []


def seeds_of(wildcards):
    """The trainings of the requested number of seeds, from 1."""
    return expand(
        "study/variants/pretrain__seed~{seed}.json",
        seed=range(1, int(wildcards.number) + 1),
    )


def grid(wildcards):
    """The trainings of each row of the table."""
    import pandas  # imported here because it takes a quarter of a second
    from snakemake.utils import Paramspace

    table = pandas.read_csv("presets/sweep.csv", dtype=str)
    space = Paramspace(table, filename_params="*", filename_sep=",")
    return expand("study/variants/{row}.json", row=space.instance_patterns)


def variant(wildcards):
    """The config sections of a training, with the values in its file's name."""
    try:
        values = picollm_config.variant(CONFIG, wildcards.variant)
    except PicollmError as error:
        stop(error)
    names = ("model", "pretrain", "attention", "heads", "compute")
    return {name: values[name] for name in names}


def guard():
    """Takes the run's lock, and runs `picollm sync` unless data, dvc.lock and Snakemake's records agree.

    It does nothing in jobs or in sync's own calls, and runs no sync inside a DVC stage, where DVC has already decided.
    """
    if not workflow.is_main_process or "PICOLLM_UNGUARDED" in os.environ:
        return
    if not RUNS:
        return
    dry = workflow.output_settings.dryrun
    if not dry:
        workflow.globals["run_lock"] = locks.hold(ROOT)  # until this process ends
        # Jobs import this checkout's picollm, even if another clone's is installed.
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ.update(PYTHONPATH=os.pathsep.join(paths))
        give(ROOT, CONFIG, FINGERPRINTS)
    outputs = {artefact(path) for stage in stages() for path in stage.outputs}
    if "DVC_STAGE" not in os.environ and not seal.intact(ROOT, sorted(outputs)):
        picollm("sync", *(["--dry-run"] if dry else []), check=True)


def picollm(*arguments, check=False):
    """Runs the picollm command; with `check`, its failure ends this run after the command has printed its one line."""
    done = subprocess.run([sys.executable, "-m", "picollm.cli", *arguments], cwd=ROOT)
    if check and done.returncode:
        os._exit(done.returncode)


def track():
    """Records finished stages in DVC; inside a DVC stage, DVC does it itself."""
    if not {"DVC_STAGE", "PICOLLM_UNGUARDED"} & os.environ.keys():
        picollm("track")


def begin():
    """Starts the run's display, now that its jobs are known."""
    if DISPLAY is not None:
        watch.begin(DISPLAY, workflow, CONFIG, ROOT)


def end():
    """Stops the display and returns to plain messages."""
    if DISPLAY is not None:
        DISPLAY.stop()


RUNS = workflow.is_main_process and watch.runs_rules()
DISPLAY = watch.display(workflow, ROOT) if RUNS else None
