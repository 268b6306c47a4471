"""Runs one rule's script without Snakemake, as a debugger does."""

import sys

from test_scenarios import NONE, views, wrong


def test_a_script_runs_alone_and_its_run_is_recorded(built, tmp_path):
    copy = built.copy(tmp_path / "copy")
    (copy.path / "picollm/report/html/data.html.j2").open("a").write("by hand\n")
    copy.run(sys.executable, "workflow_scripts/final_report.py")
    assert "recorded in DVC: final_report" in copy.picollm("sync")
    assert views(copy) == (NONE, NONE) and wrong(copy) == []


def test_what_is_missing_gives_a_one_line_error(built, tmp_path):
    copy = built.copy(tmp_path / "copy")
    (copy.path / "data/model/model.safetensors").unlink()
    text = copy.run(sys.executable, "workflow_scripts/classify_heads.py", ok=False)
    assert "picollm: data/model/model.safetensors is missing: run `snakemake" in text and "Traceback" not in text


def test_it_holds_the_lock_of_a_run(built, tmp_path):
    copy = built.copy(tmp_path / "copy")
    (copy.path / "logs/before-final_report.py").write_text(
        "import os, subprocess, sys\n"
        "others = {name: value for name, value in os.environ.items() if name != 'PICOLLM_RUN'}\n"
        "done = subprocess.run([sys.executable, '-m', 'picollm.cli', 'track'], env=others, capture_output=True)\n"
        "assert b'another run is active here' in done.stderr, done.stderr\n"
    )
    copy.run(sys.executable, "workflow_scripts/final_report.py")
