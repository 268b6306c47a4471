"""The display of a run: bars for terminals and others, the picture, the lines, the estimate."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from picollm import progress as progress_module
from picollm.config import load
from picollm.console import display as display_module
from picollm.console import estimate as estimate_module
from picollm.console.display import Display
from picollm.console.estimate import SECONDS, estimate, note, work
from picollm.pipeline.job import Rule, job
from picollm.progress import STATUS, describe, duration, progress

JOBS = [("tokenize_pack", 1.0), ("pretrain", 1.0), ("probe_heads", 0.5)]


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Returns a display without a terminal that replaces the stream handler of a logger like Snakemake's."""
    monkeypatch.setenv(STATUS, "")
    logger = logging.Logger("like snakemake's")
    plain = logging.StreamHandler()
    plain.name = "DefaultStreamHandler"
    logger.addHandler(plain)
    made = Display(tmp_path, logger)
    assert logger.handlers == [made]
    yield made, logger
    made.stop()


def event(logger, name, level=logging.INFO, message="", **facts):
    logger.log(level, message, extra={"event": name, **facts})


def test_a_run_is_reported_in_lines_without_a_terminal(shown, capsys):
    made, logger = shown
    made.begin(JOBS, {"tokenize_pack": 4.0, "pretrain": 60.0, "probe_heads": 20.0}, "this machine's earlier runs")
    logger.info("Select jobs to execute...")
    event(logger, "job_started", jobs=[1])
    event(logger, "job_info", rule_name="tokenize_pack", jobid=1)
    (made.folder / "tokenize_pack.7.json").write_text(json.dumps({"result": "595,604 training tokens"}))
    event(logger, "job_finished", job_id=1, message="Finished jobid: 1 (Rule: tokenize_pack)")
    event(logger, "progress", done=1, total=3)
    event(logger, "job_info", rule_name="pretrain", jobid=2)
    logger.warning("the disk is nearly full")
    event(logger, "error", logging.ERROR, "MissingOutputException: nothing there", exception="MissingOutputException")
    event(logger, "error", logging.ERROR, 'CalledProcessError in file "x": 1', exception="RuleException")
    event(logger, "job_error", logging.ERROR, rule_name="pretrain")
    lines = capsys.readouterr().err.splitlines()
    # 4 + 60 on all cores, 20 on half of them
    assert lines == [
        "picollm: 3 rules to run, about 1 min 14 s (from this machine's earlier runs)",
        "tokenize_pack: done in 0 s: 595,604 training tokens",
        "the disk is nearly full",
        "MissingOutputException: nothing there",
    ]


@pytest.mark.heavy
def test_a_long_rule_speaks_now_and_then(shown, capsys, monkeypatch):
    monkeypatch.setattr(display_module, "LINE_SECONDS", 0.0)
    made, logger = shown
    made.begin(JOBS, {"pretrain": 90.0}, "a calibration")
    event(logger, "job_info", rule_name="pretrain", jobid=2)
    bar = {"n": 205, "total": 500, "elapsed": 41.0, "initial": 0, "unit": " steps", "prefix": "pretrain"}
    (made.folder / "pretrain.7.json").write_text(json.dumps({"bar": bar | {"postfix": "loss=6.81"}}))
    deadline = time.monotonic() + 10
    said = ""
    while "pretrain" not in said.partition("\n")[2] and time.monotonic() < deadline:
        time.sleep(0.1)
        said += capsys.readouterr().err
    assert "picollm: 3 rules to run, about 1 min 30 s without tokenize_pack, probe_heads (from a calibration)" in said
    assert "pretrain: 41%, 205 of 500 steps, 5/s, 59 s left, loss=6.81" in said
    row = made.rows["pretrain"]
    row.status = {}
    (made.folder / "pretrain.7.json").unlink()
    assert made.line(row, 65.0) == "pretrain: running for 1 min 05 s of about 1 min 30 s"


def drawn(made) -> list[str]:
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(made.picture())
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_picture_has_each_rule_with_its_bar_or_its_number(shown):
    made, logger = shown
    made.begin(JOBS, {"probe_heads": 20.0}, "a calibration")
    event(logger, "job_info", rule_name="tokenize_pack", jobid=1)
    (made.folder / "tokenize_pack.7.json").write_text(json.dumps({"result": "595,604 training tokens"}))
    event(logger, "job_finished", job_id=1)
    event(logger, "job_info", rule_name="pretrain", jobid=2)
    bar = {"n": 5, "total": 10, "elapsed": 5.0, "initial": 0, "unit": " steps", "prefix": "pretrain", "postfix": ""}
    (made.folder / "pretrain.7.json").write_text(json.dumps({"bar": bar}))
    lines = drawn(made)
    assert lines[1].split(maxsplit=4) == ["+", "tokenize_pack", "0", "s", "595,604 training tokens"]
    assert lines[2].startswith("> pretrain") and lines[2].endswith("50%, 5 of 10 steps, 1/s, 5 s left")
    assert lines[3].split(maxsplit=1) == ["probe_heads", "about 20 s"]
    event(logger, "job_error", rule_name="pretrain")
    assert drawn(made)[2].split() == ["x", "pretrain", "failed"]


def test_a_step_that_was_resumed_is_not_counted_into_the_rate():
    bar = {"n": 30, "total": 50, "elapsed": 5.0, "initial": 20, "unit": " batches", "prefix": "", "postfix": ""}
    assert describe(bar) == "60%, 30 of 50 batches, 2/s, 10 s left"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (7500, "2 h 05 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_a_bar_in_a_job_writes_its_status_and_nothing_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(STATUS, str(tmp_path / "pretrain"))
    monkeypatch.setattr(progress_module, "DRAW_SECONDS", 0.0)
    for number in progress(range(3), desc="pretrain", unit=" steps"):
        if number == 2:
            bar = json.loads((tmp_path / f"pretrain.{os.getpid()}.json").read_text())["bar"]
            assert (bar["n"], bar["total"], bar["prefix"]) == (2, 3, "pretrain")
    assert json.loads((tmp_path / f"pretrain.{os.getpid()}.json").read_text())["bar"] is None
    assert capfd.readouterr() == ("", "")


def test_a_bar_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.delenv(STATUS, raising=False)
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    list(progress(range(4), desc="accuracy gate", unit=" batches"))
    assert "accuracy gate: 100%, 4 of 4 batches" in capsys.readouterr().err
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 30.0)
    list(progress(range(4), desc="accuracy gate", unit=" batches"))
    assert capsys.readouterr().err == ""


CONFIG = load("config.yaml")


def test_the_shipped_configuration_is_the_unit_of_work():
    amounts = work(CONFIG, None)
    assert all(0.97 < amount < 1.03 for amount in amounts.values())
    longer = CONFIG | {"pretrain": CONFIG["pretrain"] | {"length": 5000}}
    assert work(longer, None)["pretrain"] == pytest.approx(10 * amounts["pretrain"])
    epochs = CONFIG | {"pretrain": CONFIG["pretrain"] | {"unit": "epochs", "length": 2}}
    assert work(epochs, None)["pretrain"] is None and work(epochs, 4000)["pretrain"] == amounts["pretrain"]
    assert work(CONFIG | {"model": CONFIG["model"] | {"checkpoint": "elsewhere"}}, None)["pretrain"] == 0


def test_an_earlier_run_decides_where_it_was_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_module, "calibration", lambda: None)
    (tmp_path / "logs/benchmarks").mkdir(parents=True)
    (tmp_path / "logs/benchmarks/pretrain.tsv").write_text("s\th:m:s\n200.0\t0:03:20\n")
    note(tmp_path, "pretrain", 1.0)
    assert estimate(["pretrain"], tmp_path, {"pretrain": 2.0}) == ({"pretrain": 400.0}, "this machine's earlier runs")
    assert estimate(["pretrain"], tmp_path, {"pretrain": 40.0}) == ({}, "no estimate: the calibration failed")
    assert estimate(["pretrain"], tmp_path, {"pretrain": None}) == ({}, "")
    assert estimate(["draw_figures"], tmp_path, {}, calibrate=False) == ({}, "")


def test_every_stage_has_a_time():
    assert set(SECONDS) == set(yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"])


def test_a_finished_rule_is_noted_wherever_that_is_possible(tmp_path):
    note(tmp_path, "pretrain", 1.0)  # somebody removed logs/ during the run
    assert json.loads((tmp_path / "logs/benchmarks/work.json").read_text()) == {"pretrain": 1.0}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/logs").write_text("a file")
    note(tmp_path / "other", "pretrain", 1.0)


@pytest.mark.heavy
def test_the_calibration_is_real_and_scales_every_rule(tmp_path):
    seconds, source = estimate(SECONDS, tmp_path, work(CONFIG, None))
    assert set(seconds) == set(SECONDS) and all(value > 0 for value in seconds.values())
    assert source.startswith("a calibration: ") and source.endswith(" GFLOP/s in float32")


def test_a_job_that_is_stopped_from_the_keyboard_says_so_without_a_traceback(tmp_path):
    program = f"""
from pathlib import Path
import picollm.pipeline.job as j
j.check_before = lambda rule: None
with j.job(j.Rule("pretrain", [], [], {{}}, "", 1, None, Path("{tmp_path}/x.log"))) as rule:
    rule.report_result("nothing")
    raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 130 and done.stderr == "pretrain: stopped from the keyboard: run again to resume\n"


def test_under_a_picture_warnings_go_to_the_status_and_what_was_found_beside_them(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(STATUS, str(tmp_path))
    monkeypatch.setenv(progress_module.PICTURE, "1")
    monkeypatch.setattr("picollm.pipeline.job.check_before", lambda rule: None)
    monkeypatch.setattr(progress_module, "_said", {})
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        with job(Rule("probe_heads", [], [], {}, "", 1, None, Path("x.log"))) as rule:
            logging.info("a detail")
            logging.warning("odd")
            rule.report_result("48 %")
    finally:
        root.handlers[:] = before
    status = json.loads((tmp_path / f"probe_heads.{os.getpid()}.json").read_text())
    assert status == {"said": [["WARNING", "odd"]], "result": "48 %"}
    assert capfd.readouterr() == ("", "") and "a detail" in (tmp_path / "x.log").read_text()
