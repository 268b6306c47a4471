"""What every rule file uses, the checked config, the code fingerprint, and errors of one line."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

from snakemake.cli import parse_args

from picollm import config as picollm_config
from picollm import inputs as files
from picollm.attention.sentences import CATEGORIES, load_sentences
from picollm.errors import PicollmError
from picollm.pipeline import fingerprint as code
from picollm.pipeline import locks, seal, watch
from picollm.pipeline.dvc_yaml import check_dvc_yaml, check_writable, stages_of
from picollm.pipeline.receipts import artefact
from picollm.report.chapters import CHAPTERS
from picollm.seed_summary import SECTIONS as SEED_SECTIONS

ROOT = Path(workflow.basedir)
# Snakemake's flags, by its own names, of calls that run no rule. They need no proof of the data, and `picollm sync`
# itself makes some of them.
READERS = (
    "lint list_target_rules list_rules print_compilation containerize report reporter generate_unit_tests dag "
    "rulegraph filegraph d3dag unlock cleanup_metadata conda_cleanup_envs conda_create_envs_only list_conda_envs "
    "cleanup_shadow container_cleanup_images list_changes list_input_changes list_params_changes list_untracked "
    "summary detailed_summary archive delete_all_output delete_temp_output touch".split()
)


def stop(error):
    """One line and exit code 1; an exception would come out as a traceback or as Snakemake's several lines."""
    print(f"picollm: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


try:
    picollm_config.refuse_overrides(dict(config))
    CONFIG = picollm_config.load("config.yaml")
    CORPUS_FILES = files.corpus_files(CONFIG["corpus"])
    MODEL_FILES = files.model_files(CONFIG["model"])
    TOKENIZER_FILES = files.tokenizer_files(CONFIG["model"])
    SEED_FILES = files.seed_files(CONFIG["report"])
    files.refuse_names("attention.sentences", [CONFIG["attention"]["sentences"]])
    if workflow.is_main_process:  # before hours of training, not after
        load_sentences(CONFIG["attention"]["sentences"])
except PicollmError as error:
    stop(error)


def sections(*names):
    """The `cfg` param of a rule, whole config sections in one dict, as Snakemake compares params without names."""
    return {name: CONFIG[name] for name in names}


def fingerprint(rule):
    """The `code` param of a rule, the sha256 of its script and of every picollm module that it imports."""
    return code.fingerprint(code.rule_code(rule, ROOT), ROOT)


def stages():
    """Snakemake's rules, in the words of picollm.pipeline.dvc_yaml."""
    return stages_of(workflow.rules, ROOT, CONFIG["corpus"])


SLICES = ".snakemake/picollm/slices/{slice}.npy"


def slices():
    """The files that tokenize_pack puts together; none where it does the whole work itself."""
    count = CONFIG["tokens"]["slices"]
    return expand(SLICES, slice=range(count)) if count > 1 else []


def runs_rules():
    """Whether this call of Snakemake runs rules, or says which it would.

    Its own parser knows every spelling, and what profiles say; where this command line did not call Snakemake, yes.
    """
    try:
        with redirect_stderr(io.StringIO()):  # the profile was named before
            _, flags = parse_args(sys.argv[1:])
    except (Exception, SystemExit):
        return True
    shows = any(getattr(flags, name, None) for name in READERS)
    return flags.report_after_run or not shows


def guard():
    """Before a run: nobody else at work, and data, dvc.lock and Snakemake's records at one state; else `picollm sync`.

    Inside a DVC stage DVC has decided already; jobs and the calls that sync makes itself ask nothing either.
    """
    if not workflow.is_main_process or "PICOLLM_UNGUARDED" in os.environ:
        return
    if not runs_rules():
        return
    dry = workflow.output_settings.dryrun
    if not dry:
        workflow.globals["run_lock"] = locks.hold(ROOT)  # until this process ends
        # Jobs import this checkout's picollm, even where another clone's is the installed one.
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ.update(PYTHONPATH=os.pathsep.join(paths))
    outputs = {artefact(path) for stage in stages() for path in stage.outputs}
    if "DVC_STAGE" not in os.environ and not seal.intact(ROOT, sorted(outputs)):
        picollm("sync", *(["--dry-run"] if dry else []), check=True)


def picollm(*arguments, check=False):
    """Run the picollm command; with `check` its failure ends this run, its one line having been said."""
    done = subprocess.run([sys.executable, "-m", "picollm.cli", *arguments], cwd=ROOT)
    if check and done.returncode:
        os._exit(done.returncode)


def track():
    """Record finished stages in DVC; inside a DVC stage DVC does it itself."""
    if not {"DVC_STAGE", "PICOLLM_UNGUARDED"} & os.environ.keys():
        picollm("track")


def begin():
    """The picture of the run, now that its jobs are known."""
    if DISPLAY is not None:
        watch.begin(DISPLAY, workflow, CONFIG, ROOT)


def end():
    """Back to plain messages."""
    if DISPLAY is not None:
        DISPLAY.stop()


DISPLAY = watch.display(workflow, ROOT) if runs_rules() else None
