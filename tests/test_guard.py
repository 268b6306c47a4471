"""Only real runs of Snakemake may change the data, however the flags of other calls are spelled."""

from pathlib import Path

import pytest
from refusals import said
from workspace import Workspace

LOST, EDITED = "data/tokens/shard-0.bin", "reports/heads.json"  # sync restores the one and moves the other aside


@pytest.fixture(scope="module")
def moved(built, tmp_path_factory):
    """A copy whose data differ from dvc.lock; no test may change that."""
    copy = built.copy(tmp_path_factory.mktemp("moved") / "copy")
    (copy.path / LOST).unlink()
    (copy.path / EDITED).write_text("by hand")
    return copy


def data(copy: Workspace) -> dict[Path, bytes]:
    folders = (copy.path / name for name in ("data", "reports", "aside"))
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "flags",
    ["-nq", "--cores 2 -nR all", *(pytest.param(f, marks=pytest.mark.exhaustive) for f in ("-pn", "-nF", "--dry-ru"))],
)
def test_a_dry_run_says_that_a_sync_is_due_and_does_nothing(moved, flags):
    before = data(moved)
    assert "run `picollm sync`" in said(moved.run("snakemake", *flags.split(), ok=False))
    assert data(moved) == before


def test_a_dry_run_may_be_asked_for_in_a_profile(moved, tmp_path):
    (tmp_path / "config.yaml").write_text("dry-run: true\ncores: 1\n")
    before = data(moved)
    assert "run `picollm sync`" in said(moved.run("snakemake", "--profile", str(tmp_path), ok=False))
    assert data(moved) == before


@pytest.mark.parametrize("flags", ["--summ", "--rulegr", "--list-c input", "--list-t"])
def test_a_call_that_shows_something_asks_for_nothing(moved, flags):
    before = data(moved)
    text = moved.run("snakemake", "--cores", "1", *flags.split(), ok=None)
    assert "picollm: " not in text and "Traceback" not in text
    assert data(moved) == before


@pytest.mark.slow
def test_a_run_that_ends_with_a_report_of_snakemakes_is_a_run(moved, tmp_path):
    copy = moved.copy(tmp_path / "copy")
    text = copy.snakemake("--report", "r.html", "--report-after-run", ok=None)  # the report itself needs the network
    assert "picollm: restored from DVC's cache" in text
    assert (copy.path / LOST).exists() and (copy.path / "aside").exists()
