"""What every rule file uses, the checked config, the code fingerprint, and errors of one line."""

import os
import subprocess
import sys
from pathlib import Path

from picollm import config as picollm_config
from picollm.errors import PicollmError
from picollm.pipeline import fingerprint as code
from picollm.pipeline.stages import Stage, check_dvc_yaml, check_writable

ROOT = Path(workflow.basedir)


def stop(error):
    """One line and exit code 1; an exception would come out as a traceback or as Snakemake's several lines."""
    print(f"picollm: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


try:
    picollm_config.refuse_overrides(dict(config))
    CONFIG = picollm_config.check(dict(config))
except PicollmError as error:
    stop(error)


def sections(*names):
    """The `cfg` param of a rule, whole config sections in one dict, as Snakemake compares params without names."""
    return {name: CONFIG[name] for name in names}


def code_files(rule):
    return code.code_files(Path("workflow_scripts") / f"{rule}.py", ROOT)


def fingerprint(rule):
    """The `code` param of a rule, the sha256 of its script and of every picollm module that it imports."""
    return code.fingerprint(code_files(rule), ROOT)


def stages():
    """Snakemake's rules, in the words of picollm.pipeline.stages; `all` has no artefact of its own."""
    return [
        Stage(
            name=rule.name,
            inputs=[str(path) for path in rule.input],
            outputs=[str(path) for path in rule.output],
            sections=list(rule.params.cfg),
            code=[str(path) for path in code_files(rule.name)],
        )
        for rule in workflow.rules
        if rule.output
    ]


def local_corpus_files():
    """Every file below corpus.path, so that both tools see an edited corpus; none for the other sources."""
    if CONFIG["corpus"]["source"] != "local":
        return []
    folder = Path(CONFIG["corpus"]["path"])
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    if not files:
        stop(
            f"corpus.path = {folder}: no such folder, or no file in it; put the text there or change corpus.source"
        )
    return files


def track():
    """Record finished stages in DVC; inside a DVC stage DVC does it itself."""
    if "DVC_STAGE" not in os.environ:
        subprocess.run([sys.executable, "-m", "picollm.cli", "track"], cwd=ROOT)
