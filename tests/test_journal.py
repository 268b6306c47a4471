"""A process that a backend kills is restarted without that backend, and resumes after the finished parts."""

import json
import os
import sys
from pathlib import Path

import pytest

import picollm
from picollm.engine.journal import BROKEN, Journal, supervise
from picollm.errors import PicollmError

# Ways in which a backend ends its process; `fine` answers.
WORK = """
import os, signal, sys, time
from pathlib import Path
from picollm.engine import journal
from picollm.errors import PicollmError

folder, faults = Path(sys.argv[1]), dict(x.split("=") for x in sys.argv[2:])

def run(name):
    fault = faults[name]
    if fault == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "exits":
        os._exit(3)
    if fault == "hangs":
        time.sleep(600)
    if fault == "breaks":
        journal.gpu_is_broken = lambda: True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if fault == "is refused":
        raise PicollmError("the tokens are of another tokenizer")
    return name.upper()

def work(kept):
    with open(folder / "starts", "a") as file:
        file.write("x")
    for name in faults:
        if name not in kept.ended:
            kept.get(f"answer {name}", lambda: kept.watched(name, "at batch 1", run)(name))

journal.child(work, folder)
"""


def supervised(folder: Path, limit: float = 120.0, **faults: str) -> Journal:
    command = [sys.executable, "-c", WORK, str(folder), *(f"{name}={fault}" for name, fault in faults.items())]
    supervise(command, folder, needed="reference", limit=limit)
    return Journal(folder)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(picollm.__file__).parents[1]))


def test_what_ends_its_process_costs_only_itself(tmp_path):
    kept = supervised(tmp_path, reference="fine", a="crashes", b="fine", c="exits", d="breaks", e="fine")
    assert kept.ended == {
        "a": "it ended its process (SIGSEGV) at batch 1",
        "c": "it ended its process (exit code 3) at batch 1",
        "d": "it broke the GPU at batch 1: CUDA error: an illegal memory access was encountered",
    }
    answers = {key: value for key, value in kept.entries.items() if key.startswith("answer")}
    assert answers == {f"answer {name}": name.upper() for name in ("reference", "b", "e")}
    assert (tmp_path / "starts").read_text() == "xxxx"
    lines = [json.loads(line) for line in (tmp_path / "done.jsonl").read_text().split("\n") if line]
    assert sum(key == "answer reference" for key, _ in lines) == 1, "what is done is not done again"


@pytest.mark.heavy
def test_a_backend_that_never_answers_is_given_up(tmp_path):
    kept = supervised(tmp_path, limit=5.0, reference="fine", a="hangs", b="fine")
    assert kept.ended == {"a": "it gave no answer for 5 s at batch 1"} and kept.entries["answer b"] == "B"


@pytest.mark.parametrize(("faults", "said"), [
    ({"reference": "crashes"}, "ended its process .SIGSEGV. at batch 1"),
    ({"reference": "fine", "a": "is refused"}, "^the tokens are of another tokenizer$"),
])  # fmt: skip
def test_without_the_reference_or_by_its_own_word_it_ends(tmp_path, faults, said):
    with pytest.raises(PicollmError, match=said):
        supervised(tmp_path, **faults)


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path):
    kept = Journal(tmp_path)
    kept.add("a", 1)
    with open(tmp_path / "done.jsonl", "a") as file:
        file.write('["b", {"c": ')
    assert Journal(tmp_path).entries == {"a": 1}
    Journal(tmp_path).add("d", 2)
    assert Journal(tmp_path).entries == {"a": 1, "d": 2}


def test_without_a_folder_nothing_ends():
    def fails():
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        Journal().watched("a", "at batch 1", fails)()
    assert os.EX_TEMPFAIL == BROKEN
