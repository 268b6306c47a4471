"""The configuration of a run's jobs on other machines, and locks on a file system without any."""

import errno
import fcntl

import pytest

from picollm.cluster.given import give, given
from picollm.errors import PicollmError
from picollm.pipeline import locks


@pytest.fixture(autouse=True)
def nobody_at_work(monkeypatch):
    monkeypatch.setenv(locks.HOLDER, "")


def test_a_job_gets_its_runs_configuration_and_code_and_none_of_another_run(tmp_path, monkeypatch):
    with locks.hold(tmp_path):
        give(tmp_path, {"clusters": {"max_k": 3}}, {"pretrain": "abc"})
        found = given(tmp_path)
        assert found["config"] == {"clusters": {"max_k": 3}} and found["code"] == {"pretrain": "abc"}
        assert found["run"] == (tmp_path / locks.FOLDER / "run.lock").read_text()
    monkeypatch.setenv(locks.HOLDER, "process 1 on another, since then")
    with pytest.raises(PicollmError, match=r"run \(process 1 on another, since then\) has ended and another has begun"):
        given(tmp_path)


def test_the_second_of_two_runs_names_the_process_and_the_machine_of_the_first(tmp_path, monkeypatch):
    with locks.hold(tmp_path):
        monkeypatch.setenv(locks.HOLDER, "")
        with pytest.raises(PicollmError, match=r"another run is active here \(process \d+ on .+, since "):
            locks.hold(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_snakemakes_lock_is_stale_only_where_the_file_system_has_locks(tmp_path, monkeypatch, there):
    left = tmp_path / ".snakemake/locks/0.input.lock"
    left.parent.mkdir(parents=True)
    left.touch()
    if not there:

        def refuse(file, kind):
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.hold(tmp_path):
        assert left.exists() != there
