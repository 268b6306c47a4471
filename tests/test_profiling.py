"""The timeline analyser on captures with known answers, and real captures with both profilers."""

import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from itertools import islice

import numpy as np
import psutil
import pytest
import torch

from picollm.errors import PicollmError
from picollm.model.training import TrainingConfig
from picollm.model.transformer import ModelConfig
from picollm.profiling import capture, workload
from picollm.profiling.ladder import BATCHES, ROUNDS, ladder, row_by_row
from picollm.profiling.timeline import analyse, intersection, length, metrics, read_kineto, read_nsys, spans, union

needs_nsys = pytest.mark.skipif(
    shutil.which("nsys") is None, reason="nsys is not installed (.ci/install-nsys installs it on Debian)"
)

MS = 1_000_000  # nanoseconds
# (name, start, end) in ms: one warm-up step, two measured ones of 100 ms each with a gap between them, and a wait for
# the device, 30 ms
RANGES = [
    ("warmup", 0, 50), ("step", 10, 40), ("data_wait", 10, 30), ("measured", 100, 350),
    ("step", 100, 200), ("data_wait", 100, 140), ("forward", 140, 190),
    ("step", 220, 320), ("data_wait", 220, 240), ("forward", 240, 300),
]  # fmt: skip
# Busy: 130-190 (two overlapping kernels and a copy), 205-215, and 230-345 (a CUDA graph, done long after the host has
# left its step): 185 of 250 ms; of the 60 ms in data_wait, 20 are busy (130-140, 230-240).
GPU = [("KERNEL", 130, 160), ("KERNEL", 150, 180), ("MEMCPY", 180, 190), ("GRAPH_TRACE", 230, 345),
       ("MEMSET", 205, 215), ("KERNEL", 20, 90)]  # fmt: skip
# A perfect loader wins back no more than the host waited, 60 of 250 ms, which is less than the GPU idles, 65.
EXPECTED_GPU = {"busy": 0.74, "idle": 0.26, "idle_during_data_wait": 0.16, "better_loading": 1 / 0.76 - 1}


def write_nsys(path, ranges=RANGES, gpu=GPU):
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
        database.execute("CREATE TABLE NVTX_EVENTS (start INT, end INT, eventType INT, text TEXT, textId INT)")
        for number, (name, start, end) in enumerate(ranges):
            text = (None, number) if number % 2 else (name, None)  # registered and plain strings
            database.execute("INSERT INTO StringIds VALUES (?, ?)", (number, name))
            database.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, ?, ?)", (start * MS, end * MS, *text))
        database.execute("INSERT INTO NVTX_EVENTS VALUES (0, NULL, 75, 'a domain, no range', NULL)")
        for table in {kind for kind, *_ in gpu}:
            database.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_{table} (start INT, end INT)")
        for table, start, end in gpu:
            database.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_{table} VALUES (?, ?)", (start * MS, end * MS))
    return path


def write_kineto(path, ranges=RANGES, gpu=GPU):
    category = {"KERNEL": "kernel", "MEMCPY": "gpu_memcpy", "MEMSET": "gpu_memset", "GRAPH_TRACE": "kernel"}
    spans = [("user_annotation", *row) for row in ranges] + [(category[kind], kind, *row) for kind, *row in gpu]
    # The GPU's mirror of an annotation and torch's own annotations are not our ranges.
    spans += [("gpu_user_annotation", "step", 0, 900), ("user_annotation", "Optimizer.step#AdamW.step", 100, 110)]
    events = [{"ph": "X", "cat": cat, "name": name, "ts": start * 1e3, "dur": (end - start) * 1e3}
              for cat, name, start, end in spans]  # fmt: skip
    path.write_text(json.dumps({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}))
    return path


@pytest.fixture(params=["nsys", "kineto"])
def read(request, tmp_path):
    writer, reader = {"nsys": (write_nsys, read_nsys), "kineto": (write_kineto, read_kineto)}[request.param]
    return lambda **content: reader(writer(tmp_path / "capture", **content))


def test_shares_of_a_capture_with_known_answers(read):
    found = analyse(read())
    assert found["steps"] == {"n": 2, "total_ms": 200.0, "median_ms": 100.0, "p90_ms": 100.0, "mean_ms": 125.0}
    assert found["ranges"]["data_wait"] == pytest.approx(
        {"n": 2, "total_ms": 60.0, "median_ms": 30.0, "p90_ms": 38.0, "share": 0.24}
    )
    assert found["ranges"]["forward"]["share"] == pytest.approx(0.44)
    assert set(found["ranges"]) == {"data_wait", "forward"}
    assert found["other_share"] == pytest.approx(0.32)
    assert found["gpu"] == pytest.approx(EXPECTED_GPU) and found["gpu_reason"] is None
    assert found["timeline"][:2] == [{"name": "step", "start_ms": 0.0, "end_ms": 100.0},
                                     {"name": "data_wait", "start_ms": 0.0, "end_ms": 40.0}]  # fmt: skip


def test_without_gpu_activity_there_are_no_gpu_numbers(read):
    found = analyse(read(gpu=[]))
    assert found["gpu"] is None and found["gpu_reason"] == "no GPU activity in the capture"


def test_a_capture_without_ranges_or_steps_is_refused(read):
    with pytest.raises(PicollmError, match="recorded no"):
        read(ranges=[])
    with pytest.raises(PicollmError, match="no training step after the warm-up"):
        analyse(read(ranges=RANGES[:3]))


def test_metrics_are_flat_and_the_throughput_counts_the_wait_for_the_device(read):
    report = analyse(read()) | {"workload": {"batch_rows": 4, "context": 25}}
    found = metrics(report)
    assert found["tokens_per_second"] == pytest.approx(800)
    assert found["gpu_busy"] == pytest.approx(0.74) and found["data_wait_share"] == pytest.approx(0.24)
    assert len(found) <= 20 and all(isinstance(value, float) for value in found.values())


def test_span_arithmetic_against_a_grid():
    draw = np.random.default_rng(0)
    for _ in range(50):
        pairs = [[(int(a), int(a + b)) for a, b in draw.integers(1, 30, size=(5, 2))] for _ in range(2)]
        grids = [np.zeros(80, bool), np.zeros(80, bool)]
        for grid, group in zip(grids, pairs, strict=True):
            for a, b in group:
                grid[a:b] = True
        x, y = (union(spans(group)) for group in pairs)
        assert length(x) == grids[0].sum()
        assert length(intersection(x, y)) == (grids[0] & grids[1]).sum()


TRAINING = TrainingConfig(length=6, unit="steps", batch_rows=2, accumulate=1, processes=1, loading="gather",
                          optimizer="adamw", lr=1e-3, muon_lr=0.02, weight_decay=0.1, muon_weight_decay=0.1, warmup=0.1,
                          final_lr=0.1, clip=1.0, head_common=0, head_sampled=0, autocast="none", compile="none",
                          validate_every=1, patience=0, checkpoint_every=1, checkpoint_minutes=0,
                          snapshots=False, seed=1)  # fmt: skip


def test_the_workload_marks_every_part_of_every_step(tmp_path):
    rows = np.random.default_rng(0).integers(100, size=(8, 9)).astype(np.uint16)
    shape = ModelConfig(100, 8, 28, 2, 7, 36, 0.0, True, 10000.0, 16)
    trace = tmp_path / "training.trace.json"
    said = workload.run(shape, TRAINING, rows, torch.device("cpu"), steps=4, warmup=2, trace=trace)
    assert said == "eager"
    found = analyse(read_kineto(trace))
    assert found["steps"]["n"] == 4
    assert {name: row["n"] for name, row in found["ranges"].items()} == dict.fromkeys(
        ("data_wait", "h2d", "forward", "backward", "optimizer"), 4
    )
    assert 0 < sum(row["share"] for row in found["ranges"].values()) <= 1


MARKED = """
from picollm.ranges import ranges
for name in ("warmup", "measured"):
    with ranges(name), ranges("step"), ranges("data_wait"):
        pass
print("loss path: none")
"""


@needs_nsys
def test_nsys_records_our_ranges(tmp_path, monkeypatch):
    pytest.importorskip("nvtx", reason="without CUDA, nsys needs the package nvtx to see ranges")
    monkeypatch.setattr(capture, "workload_command", lambda spec, scratch: [sys.executable, "-c", MARKED])
    found = capture.capture("nsys", {}, tmp_path)
    assert found.tool == "nsys" and found.file == tmp_path / "training.nsys-rep" and found.file.stat().st_size > 0
    result = analyse(found.timeline)
    assert result["steps"]["n"] == 1 and result["ranges"]["data_wait"]["n"] == 1
    assert result["gpu"] is None or torch.cuda.is_available()


def stand_in(tmp_path, monkeypatch):
    """A workload that takes no time and returns an existing trace."""
    script = tmp_path / "workload.py"
    script.write_text(
        "import shutil, sys\nprint('loss path: eager')\n"
        f"if '--trace' in sys.argv: shutil.copyfile({str(write_kineto(tmp_path / 'made.json'))!r}, sys.argv[-1])\n"
    )
    monkeypatch.setattr(capture, "workload_command", lambda spec, scratch: [sys.executable, str(script)])


@needs_nsys
def test_nsys_without_permission_is_one_clear_line_or_torch_takes_over(tmp_path, monkeypatch):
    tempfile.gettempdir()  # Python's own temporary folder stays
    monkeypatch.setenv("TMPDIR", "/proc")  # not writable, even for root
    stand_in(tmp_path, monkeypatch)
    said = r"^nsys failed with exit code 1: .* \(it may lack permission to write in \$TMPDIR or /tmp/nvidia; "
    with pytest.raises(PicollmError, match=said):
        capture.capture("nsys", {}, tmp_path)
    found = capture.capture("auto", {}, tmp_path)
    assert found.tool == "torch.profiler" and "permission to write in $TMPDIR" in found.reason


@pytest.mark.parametrize("tool", [pytest.param("nsys", marks=needs_nsys), "torch.profiler"])
def test_a_failing_workload_is_one_clear_line(tmp_path, monkeypatch, tool):
    command = [sys.executable, "-c", "import sys; sys.exit('workload: no tokens')"]
    monkeypatch.setattr(capture, "workload_command", lambda spec, scratch: command)
    with pytest.raises(PicollmError, match="failed with exit code 1: workload: no tokens$"):
        capture.capture(tool, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


# A program in place of nsys. Like nsys it runs the workload among its own processes; then it hangs at one point.
HANGING = """#!{python}
import os, subprocess, sys, time
def hang(where):
    if where == {where!r}:
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        open({pids!r}, "w").write(f"{{os.getpid()}} {{grandchild.pid}}")
        time.sleep(600)
if sys.argv[1] == "profile":
    hang("before the workload")
    command = sys.argv[sys.argv.index("-o") + 2 :]
    subprocess.run(command, check=True)
    hang("after the workload")
    open(sys.argv[sys.argv.index("-o") + 1] + ".nsys-rep", "w").close()
if sys.argv[1] == "export":
    hang("in the export")
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before the workload", "after the workload", "in the export"])
def test_nsys_that_hangs_is_ended_and_torch_takes_over(tmp_path, monkeypatch, where):
    folder, pids = tmp_path / "bin", tmp_path / "pids"
    folder.mkdir()
    (folder / "nsys").write_text(HANGING.format(python=sys.executable, where=where, pids=str(pids)))
    (folder / "nsys").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(capture, "LIMIT", 5)
    stand_in(tmp_path, monkeypatch)
    found = capture.capture("auto", {}, tmp_path / "profile")
    assert found.tool == "torch.profiler" and analyse(found.timeline)["steps"]["n"] == 2
    assert found.reason.startswith("nsys hung: nothing happened for 5 seconds")
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split() if not is_zombie(int(pid)))
    with pytest.raises(PicollmError, match="nsys hung.* set profile.tool to torch.profiler"):
        capture.capture("nsys", {}, tmp_path / "profile")


def is_zombie(pid):
    """Returns True if the process was killed, even if its exit code was not read yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_workload_that_shows_life_is_waited_for(tmp_path):
    steps = "for step in 1 2 3 4 5 6 7 8 9 10; do echo $step >&2; sleep 0.4; done; echo done"
    alive = tmp_path / "errors"
    shell = ["sh", "-c", capture.APART, str(alive), "sh", "-c", steps]
    assert capture.call(shell, 3, alive) == "done\n"
    with pytest.raises(PicollmError, match="sh hung"):
        capture.call(shell, 3, tmp_path / "nothing")


WAITING = """
from picollm.profiling.capture import one_at_a_time
print("asks for it", flush=True)
with one_at_a_time():
    print("has it", flush=True)
"""


def test_one_capture_waits_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the other tests' captures have another lock
    monkeypatch.setattr(tempfile, "tempdir", None)
    with capture.one_at_a_time():
        other = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE)
        assert other.stdout.readline() == b"asks for it\n"
        assert select.select([other.stdout], [], [], 0.5)[0] == []
    assert other.communicate(timeout=60)[0] == b"has it\n"


def test_without_nsys_auto_takes_torch_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PicollmError, match="nsys is not on PATH"):
        capture.capture("nsys", {}, tmp_path)
    stand_in(tmp_path, monkeypatch)
    found = capture.capture("auto", {}, tmp_path)
    assert (found.tool, found.loss_path) == ("torch.profiler", "eager") and "not on PATH" in found.reason
    assert analyse(found.timeline)["steps"]["n"] == 2


def test_the_ladder_of_loading_times_every_way_and_row_by_row_gives_every_row():
    rows = np.arange(24 * 9, dtype=np.uint16).reshape(24, 9)
    batches = list(islice(row_by_row(rows, 4, pin=False, workers=0), 12))
    for epoch in (batches[:6], batches[6:]):
        assert sorted(row.tolist() for batch in epoch for row in batch) == rows.tolist()
    found = ladder(rows, 4, torch.device("cpu"))
    assert [row["rung"] for row in found] == ["row by row", "row by row, 2 workers", "gather", "workers", "resident"]
    assert all(row["n"] == ROUNDS * BATCHES and 0 < row["median_ms"] <= row["p90_ms"] for row in found)
