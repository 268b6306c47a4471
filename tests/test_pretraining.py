"""A whole run from packed tokens: in one process, in several under torchrun, stopped and resumed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pytest
import torch
from test_training import RECIPE, SHAPE

from picollm.data.articles import Article, write_articles
from picollm.data.loading import open_split
from picollm.data.packing import tokenize_pack
from picollm.errors import PicollmError
from picollm.files import write_json
from picollm.model import training
from picollm.model.loss import evaluate
from picollm.model.pretraining import LAUNCHER, Run, pretrain, result

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = {key: value for key, value in SHAPE.items() if key not in ("vocab_size", "context")}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    sources = {}
    for split, n in (("train", 60), ("validation", 9), ("test", 9)):
        sources[split] = folder / f"{split}.parquet"
        texts = [f" = Mill {split} {i} = \n\n The mill turned {i * 7 % 11} times in {i} days . \n" for i in range(n)]
        write_articles(sources[split], [Article(f"Mill {i}", text) for i, text in enumerate(texts)])
    manifest = folder / "tokens" / "manifest.json"
    tokenize_pack(sources, manifest, context=16, shard_rows=64)
    return str(manifest)


@pytest.fixture
def run(tokens, tmp_path):
    def make(**edits):
        pretrain = RECIPE | {"length": 6, "checkpoint_every": 2, "batch_rows": 8, "snapshots": True} | edits
        compute = {"device": "cpu", "threads": 1}
        return Run(MODEL, pretrain, compute, tokens, code="c", folder=str(tmp_path / "checkpoints"))

    return make


def losses(found):
    return [row["loss"] for row in found.curve]


def test_a_run_gives_its_best_and_last_model_and_their_numbers(run, tokens):
    found = pretrain(run(lr=0.1, final_lr=1.0, validate_every=1))  # too fast: the last is not the best
    summary = found.summary
    validation = open_split(tokens, "validation")
    assert summary["best_step"] < summary["steps"] == 6
    for model, name in ((found.best, "validation_loss"), (found.last, "last_validation_loss")):
        assert not model.training
        assert summary[name] == evaluate(model, validation, torch.device("cpu"))
    assert summary["validation_loss"] < summary["last_validation_loss"]
    assert summary["tokens"] == 6 * 8 * 16 and summary["peak_memory_mib"] > 50
    assert result(run(lr=0.1, final_lr=1.0, validate_every=1)).summary == summary, "its last checkpoint holds all of it"
    with pytest.raises(PicollmError, match="no complete checkpoint"):
        result(run(seed=9))


def test_two_processes_train_like_one_and_either_goes_on_with_the_others_run(run):
    together = pretrain(run(processes=2, head_common=50, head_sampled=100))
    alone = run(head_common=50, head_sampled=100)
    newest = alone.checkpoints().marks()[0]
    assert newest.name == "step-000006.json"
    newest.unlink()
    continued = pretrain(alone)
    assert continued.summary["resumed_at"] == [4] and losses(continued)[:4] == losses(together)[:4]
    alone.checkpoints().remove()
    whole = pretrain(alone)
    for found in (together, continued):
        assert losses(found) == pytest.approx(losses(whole), rel=1e-5)
        assert found.summary["validation_loss"] == pytest.approx(whole.summary["validation_loss"], rel=1e-5)
    assert losses(together) != losses(pretrain(run(head_common=50, head_sampled=100, seed=2)))


@pytest.fixture
def read_seldom(tmp_path, monkeypatch):
    """Reads the losses as rarely as on a GPU, in this process and in those of torchrun."""
    monkeypatch.setitem(training.READ_EVERY, "cpu", training.READ_EVERY["cuda"])
    code = "from picollm.model import training; training.READ_EVERY['cpu'] = training.READ_EVERY['cuda']\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.slow
def test_several_processes_save_between_two_validations_though_losses_are_read_seldom(run, read_seldom):
    edits = {"length": 6, "checkpoint_every": 4, "validate_every": 6}
    together = pretrain(run(processes=2, **edits))
    alone = run(**edits)
    assert [mark.name for mark in alone.checkpoints().marks()] == ["step-000006.json", "step-000004.json"]
    alone.checkpoints().remove()
    assert losses(together) == pytest.approx(losses(pretrain(alone)), rel=1e-5)


def test_what_a_process_can_not_do_is_reported_by_the_one_that_started_it(run):
    with pytest.raises(PicollmError, match="pretrain.batch_rows = 8 can't be shared by 2 processes in 3 parts"):
        pretrain(run(processes=2, accumulate=3))


@pytest.mark.slow
def test_two_machines_train_like_one(run, tmp_path, monkeypatch):
    """Uses two torchrun agents that find each other by address, as on two nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "launch"
    agent = f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d"
    agent += f" --rdzv-endpoint 127.0.0.1:{port} --rdzv-id test"
    script.write_text(f'#!/bin/sh\n{agent} "$@" &\n{agent} "$@"\ncode=$?\nwait\nexit $code\n')
    script.chmod(0o755)
    monkeypatch.setenv(LAUNCHER, str(script))
    together = pretrain(run(processes=2))
    monkeypatch.delenv(LAUNCHER)
    assert losses(together) == pytest.approx(losses(pretrain(run(seed=1, checkpoint_every=3))), rel=1e-5)


def test_a_launcher_that_starts_another_number_is_refused(run, monkeypatch):
    monkeypatch.setenv(LAUNCHER, f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 1")
    with pytest.raises(PicollmError, match="1 processes were started, but pretrain.processes is 2"):
        pretrain(run(processes=2))


PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
from picollm.errors import PicollmError
from picollm.model.pretraining import Run, pretrain
try: pretrain(Run(**json.load(open(sys.argv[1]))))
except PicollmError as error: print(error); sys.exit(error.exit_code)
"""
LONG = {"length": 4000, "checkpoint_every": 5, "validate_every": 1000}


def to_the_one_that_was_started(process):
    process.send_signal(signal.SIGTERM)


def to_each(process):
    """Signals all processes at once, as a cluster's manager does."""
    children = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *children):
        one.send_signal(signal.SIGTERM)


def to_the_group(process):
    """Signals the process group, as a terminal does for Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def twice(process):
    """Signals twice, within the time in which that counts as one request."""
    to_the_group(process)
    time.sleep(0.3)
    to_the_group(process)


def hang_up(process):
    """Signals as a closed terminal does."""
    os.killpg(process.pid, signal.SIGHUP)


def stopped(first, spec, send):
    """Starts the run, sends once it has a checkpoint; returns exit code, output, and the checkpoint's step."""
    write_json(spec, asdict(first))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, spec], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not first.checkpoints().marks() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    send(process)
    said, _ = process.communicate(timeout=120)
    psutil.wait_procs(below, timeout=20)
    assert not [one for one in below if one.is_running()], "nothing may stay behind"
    found = first.checkpoints().newest()
    return process.returncode, said, len(found[1]["curve"]) if found else 0


@pytest.mark.parametrize(
    ("processes", "loading", "send"),
    [
        pytest.param(2, "gather", to_each, marks=pytest.mark.slow),
        (1, "workers", to_the_group),
        pytest.param(2, "gather", to_the_one_that_was_started, marks=pytest.mark.slow),
        pytest.param(2, "gather", to_the_group, marks=pytest.mark.exhaustive),
        pytest.param(2, "workers", twice, marks=pytest.mark.slow),
        pytest.param(2, "gather", hang_up, marks=pytest.mark.slow),
        pytest.param(1, "workers", to_each, marks=pytest.mark.exhaustive),
    ],
)
def test_whoever_gets_the_signal_the_state_is_saved_and_only_then_said_to_be(run, tmp_path, processes, loading, send):
    first = run(processes=processes, loading=loading, **LONG)
    code, said, step = stopped(first, tmp_path / "spec.json", send)
    assert code == 75 and f"after step {step} of 4000; the checkpoint is saved, run again to resume" in said
    other = replace(first, pretrain=first.pretrain | {"processes": 3 - processes})
    assert other.checkpoints().folder == first.checkpoints().folder and 5 <= step < 4000, "any number may go on"


@pytest.mark.slow
def test_a_checkpoint_that_can_not_be_written_is_not_said_to_be_saved(run, tmp_path, monkeypatch):
    """Limits files to 64 KiB from torchrun's first process on, like a full disk."""
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -f 128\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setenv(LAUNCHER, f"{limited} --standalone --nproc-per-node 2")
    with pytest.raises(PicollmError, match="File too large") as caught:
        pretrain(run(processes=2))
    assert "saved" not in str(caught.value) and caught.value.exit_code == 1
    assert not run(processes=2).checkpoints().marks()


def test_too_little_memory_names_the_knobs(run, tmp_path):
    """Limits the address space so that the logits of a step do not fit."""
    spec = tmp_path / "spec.json"
    write_json(spec, asdict(run(batch_rows=64)))
    program = (
        "import json, resource, sys; from picollm.errors import PicollmError\n"
        "from picollm.model.pretraining import Run, work\n"
        "import psutil; used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), -1))\n"
        "try: work(Run(**json.load(open(sys.argv[1]))))\n"
        "except PicollmError as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", program, spec], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "out of memory" in done.stderr and "raise pretrain.accumulate" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a /dev/shm of one's own needs root")
def test_too_little_shared_memory_names_it_and_the_way_without(run, tmp_path):
    spec = tmp_path / "spec.json"
    write_json(spec, asdict(run(batch_rows=60, loading="workers")))
    small = 'mount -t tmpfs -o size=8k tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", small, "sh", sys.executable, "-c", PROGRAM, spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "mount" in done.stderr:
        pytest.skip("this container may not mount")
    assert done.returncode == 1 and "/dev/shm" in done.stdout and "pretrain.loading: gather" in done.stdout, done.stderr
