"""Times by events, and a GPU's clocks, as far as they can be tested without a GPU."""

import os
import time

import numpy as np
import pytest
import torch

from picollm.engine.backends.backend import DeviceRun
from picollm.engine.device_timing import event_timer, gpu_state, parse, resident_call, unsteady
from picollm.engine.timing import Protocol, measure

LINE = "1980, 2619, 350.12, 700.00, 51, {reasons}, Enabled"


class HostEvent:
    """An event of a device that finishes immediately."""

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self): ...

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


def test_a_timer_of_events_times_the_call_and_not_the_flush():
    flush = torch.ones(1000, dtype=torch.int32)
    seen = []

    def run(ids):
        seen.append(int(flush.sum()))
        time.sleep(0.005)
        flush.fill_(1)

    found = event_timer(HostEvent, flush)(run, np.zeros((1, 4), np.int64))
    assert seen == [0], "flushed before the call"
    assert 5 <= found
    rounds, failed = measure(
        {"a": run}, [np.zeros((1, 4), np.int64)], Protocol(2, 0.01, 0.0, 0), timer=event_timer(HostEvent, flush)
    )
    assert not failed and all(ms >= 5 for block in rounds["a"] for ms in block)


def test_a_resident_call_copies_nothing_and_answers_the_same():
    run = DeviceRun(lambda ids, positions: ids[:, positions].float(), torch.device("cpu"))
    inputs, last = [np.arange(8).reshape(2, 4), np.arange(8, 16).reshape(2, 4)], np.array([3])
    call = resident_call(run, inputs, last)
    for ids in inputs:
        assert isinstance(call(ids), torch.Tensor)
        np.testing.assert_array_equal(call(ids), run(ids, last))


@pytest.mark.parametrize(("reasons", "throttled"), [
    ("0x0000000000000000", []), ("0x0000000000000001", []),  # idle is no reason to doubt
    ("0x0000000000000004", ["power cap"]), ("0x0000000000000060", ["heat (software)", "heat (hardware)"]),
    ("[N/A]", []),
])  # fmt: skip
def test_what_slows_a_gpu_down_is_named(reasons, throttled):
    found = parse(LINE.format(reasons=reasons))
    assert found["throttled"] == throttled and found["sm_mhz"] == 1980 and found["persistence"]


def test_what_a_gpu_does_not_tell_is_none():
    assert parse("[N/A], 2619, [Not Supported], 700.00, 51, 0x0, Disabled")["power_w"] is None


def test_clocks_that_moved_are_reported():
    before = parse(LINE.format(reasons="0x0"))
    assert unsteady(before, before) is None and unsteady(None, before) is None
    assert unsteady(before, before | {"sm_mhz": 1900.0}) is None
    assert unsteady(before, before | {"sm_mhz": 1410.0}) == "its clock went from 1980 to 1410 MHz"
    assert unsteady(before, before | {"throttled": ["power cap"]}) == "slowed down by power cap"


def test_an_older_nvidia_smi_is_asked_by_the_older_name(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    line = LINE.format(reasons="0x04")
    tool.write_text(f"#!/bin/sh\ncase $1 in *clocks_event_reasons*) exit 2;; esac\necho '{line}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_state()["throttled"] == ["power cap"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_state() is None
