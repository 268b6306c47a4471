"""A killed training run resumes without a difference, whenever it was killed; if it can't resume, it says why."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import CPU, SHAPE, random_rows, recipe

from picollm.errors import PicollmError
from picollm.model import interruption
from picollm.model.checkpoints import KEEP, Checkpoints
from picollm.model.interruption import Stopped
from picollm.model.training import Trainer, train
from picollm.model.transformer import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, EVERY = 9, 3
EDITS = {"length": STEPS, "checkpoint_every": EVERY, "validate_every": 4, "snapshots": True, "optimizer": "muon"}
DROPOUT = SHAPE | {"dropout": 0.2}


def trainer(**edits):
    return Trainer(ModelConfig(**DROPOUT), recipe(**EDITS | edits), random_rows(24), CPU)


def outcome(trained, store):
    """Returns everything that must not depend on a kill."""
    tensors, state = trained.state()
    return (
        {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()},
        [(row["step"], row["loss"], row["grad_norm"], row["lr"], row["validation_loss"]) for row in state["curve"]],
        state["best"], state["feed"],
        {step: path.read_bytes() for step, path in store.snapshots().items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(one_thread, tmp_path_factory):
    store, trained = Checkpoints(tmp_path_factory.mktemp("undisturbed"), {}), trainer()
    train(trained, random_rows(7, seed=1), store)
    return outcome(trained, store)


PROGRAM = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoints import Checkpoints, random_rows, train, trainer
from picollm import files
from picollm.model import checkpoints
from picollm.model.device import set_up
set_up("cpu", 1)
when, folder = sys.argv[1], Path(sys.argv[2])
def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
trained = trainer()
if when == "weights written":
    checkpoints.describe = kill
elif when == "weights half written":
    def half(path, data):
        if "step-000006" in path.name and "snapshots" not in str(path):
            path.with_name(f".{{path.name}}.partial").write_bytes(data[: len(data) // 2])
            kill()
        files.write_bytes(path, data)
    checkpoints.write_bytes = half
elif when == "mark half written":
    def half(path, value):
        path.write_text('{{"step": 3, "identity": {{}}, "sta')
        kill()
    checkpoints.write_json = half
else:
    advance = trained.advance
    def counted():
        if trained.step == int(when.split()[0]):
            if "at once" not in when:
                store.wait()
            kill()
        advance()
    trained.advance = counted
store = Checkpoints(folder, {{}})
train(trained, random_rows(7, seed=1), store)
if when == "{STEPS}":
    kill()
"""


MOMENTS = [str(step) for step in (0, 1, EVERY - 1, EVERY, EVERY + 1, STEPS)]


@pytest.mark.parametrize(
    "when",
    [
        *MOMENTS[::2],
        "3 at once",
        "weights half written",
        *(
            pytest.param(when, marks=pytest.mark.slow)
            for when in (*MOMENTS[1::2], "weights written", "mark half written")
        ),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, undisturbed, when):
    done = subprocess.run([sys.executable, "-c", PROGRAM, when, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store, trained = Checkpoints(tmp_path, {}), trainer()
    train(trained, random_rows(7, seed=1), store)
    assert outcome(trained, store) == undisturbed
    first = int(when) // EVERY * EVERY if when.isdigit() else {"weights half written": 3}.get(when, 0)
    assert trained.resumed_at == ([first] if first else []) or (when == "3 at once" and trained.resumed_at == [3])
    names = {path.name for path in store.folder.iterdir()} - {"snapshots"}
    assert len(names) == 2 * KEEP and not any("partial" in name for name in names)


def test_one_kill_after_another(tmp_path, undisturbed):
    for when in ("4", "weights half written", "8"):
        subprocess.run([sys.executable, "-c", PROGRAM, when, str(tmp_path)], capture_output=True)
    store, trained = Checkpoints(tmp_path, {}), trainer()
    train(trained, random_rows(7, seed=1), store)
    assert outcome(trained, store) == undisturbed and len(trained.resumed_at) >= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_so(tmp_path, undisturbed, monkeypatch, number):
    stopped, store = trainer(), Checkpoints(tmp_path, {})
    advance = stopped.advance

    def signalled():
        advance()
        if stopped.step == 4:
            os.kill(os.getpid(), number)

    stopped.advance = signalled
    before = signal.default_int_handler  # whatever started the tests: a shell's background ignores Ctrl-C
    kept = signal.signal(number, before)
    with pytest.raises(Stopped, match="after step 4 of 9; the checkpoint is saved, run again to resume") as caught:
        train(stopped, random_rows(7, seed=1), store)
    assert caught.value.exit_code == 75
    os.kill(os.getpid(), number)  # part of the same request, so nothing happens
    monkeypatch.setattr(interruption, "GRACE", 0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    signal.signal(number, kept)
    again = trainer()
    train(again, random_rows(7, seed=1), store)
    assert again.resumed_at == [4] and outcome(again, store) == undisturbed


@pytest.mark.parametrize("fault", ["flipped", "truncated", "lost", "mark"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, undisturbed, caplog, fault):
    store = Checkpoints(tmp_path, {})
    train(trainer(), random_rows(7, seed=1), store)
    newest = store.folder / f"step-{STEPS:06d}.safetensors"
    data = bytearray(newest.read_bytes())
    if fault == "flipped":
        data[-100] ^= 1
    if fault == "mark":
        newest.with_suffix(".json").write_text("{")
    elif fault == "lost":
        newest.unlink()
    else:
        newest.write_bytes(data[: len(data) // 2] if fault == "truncated" else data)
    again = trainer()
    with caplog.at_level(logging.WARNING):
        train(again, random_rows(7, seed=1), store)
    assert f"step-{STEPS:06d}.json is damaged and skipped" in caplog.text
    assert again.resumed_at == [6] and outcome(again, store) == undisturbed


def test_nothing_is_unpickled(tmp_path):
    """A pickle in the place of a checkpoint is refused and not run, even if its mark matches."""
    store, ran = Checkpoints(tmp_path, {}), tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {ran}",))

    train(trainer(length=3), random_rows(7, seed=1), store)
    file = store.folder / "step-000003.safetensors"
    torch.save(Evil(), file)
    mark = json.loads(file.with_suffix(".json").read_text())
    mark["tensors"] = {**mark["tensors"], **resume_describe(file)}
    file.with_suffix(".json").write_text(json.dumps(mark))
    assert store.newest() is None and not ran.exists()


def resume_describe(file):
    from picollm.manifest import describe

    return describe(file)


def test_another_run_starts_anew_and_says_why(tmp_path, caplog):
    old = {"pretrain": {"lr": 0.01, "seed": 1}, "code": "a"}
    train(trainer(), random_rows(7, seed=1), Checkpoints(tmp_path, old))
    new = trainer(lr=0.02)
    with caplog.at_level(logging.WARNING):
        train(new, random_rows(7, seed=1), Checkpoints(tmp_path, {"pretrain": {"lr": 0.02, "seed": 1}, "code": "a"}))
    assert new.resumed_at == [] and "of a run with different pretrain.lr: starting from scratch" in caplog.text
    assert Checkpoints(tmp_path, old).newest() is not None, "the old one may still be wanted"


def test_a_diverging_run_leaves_its_last_good_checkpoint(tmp_path):
    store, wild = Checkpoints(tmp_path, {}), trainer()
    advance = wild.advance

    def poisoned():
        if wild.step == 7:
            with torch.no_grad():
                wild.model.norm.bias.fill_(float("nan"))
        advance()

    wild.advance = poisoned
    with pytest.raises(PicollmError, match="the loss is nan at step 7: training diverged; lower pretrain.lr"):
        train(wild, random_rows(7, seed=1), store)
    tensors, state = store.newest()
    assert len(state["curve"]) == 6 and all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_full_disk_while_saving_leaves_the_checkpoint_before(tmp_path):
    """Uses a separate tmpfs, which only root can mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    try:
        store, trained = Checkpoints(disk, {}), trainer(snapshots=False)
        advance = trained.advance

        def filled():
            advance()
            if trained.step == 5:
                room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                (disk / "filler").write_bytes(b"x" * (room - 20_000))

        trained.advance = filled
        with pytest.raises(OSError, match="No space left"):
            train(trained, random_rows(7, seed=1), store)
        assert len(store.newest()[1]["curve"]) == 3 and not list(disk.rglob(".*partial"))
        (disk / "filler").unlink()
        again = trainer(snapshots=False)
        train(again, random_rows(7, seed=1), store)
        assert again.resumed_at == [3]
    finally:
        subprocess.run(["umount", disk], check=True)
