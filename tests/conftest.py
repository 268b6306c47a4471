"""Fixtures that several test files share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import standin
import workspace
from filelock import FileLock

# Runs that are killed, torchrun, nsys, a browser, a notebook, every backend, every figure.
HEAVY = {f"test_{name}.py" for name in ("api", "browser", "checkpoints", "engine", "figures", "page", "pretraining",
                                        "profiling", "study")}  # fmt: skip
LONGEST = ("test_workflows.py", "test_slow.py")


@pytest.hookimpl(tryfirst=True)  # -m selects markers after this
def pytest_collection_modifyitems(items):
    """Runs the longest tests first: two processes share them, and neither should wait for the other's last one.

    Tests that work on their own repository start Snakemake or DVC: they are heavy, as are some files and single tests.
    """
    for item in items:
        of_a_repository = "root_of_all" in item.fixturenames or {"workspace", "Workspace"} & vars(item.module).keys()
        if of_a_repository or item.path.name in HEAVY:
            item.add_marker("heavy")
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def root_of_all(tmp_path_factory, request) -> Path:
    """Returns the temporary folder that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


def once(path: Path, make: Callable[[Path], None]) -> workspace.Workspace:
    """Returns what the first process makes and the others reuse; no process may change it."""
    with FileLock(f"{path}.lock"):
        ready = Path(f"{path}.ready")
        if not ready.exists():
            make(path)
            ready.touch()
    return workspace.Workspace(path)


@pytest.fixture(scope="session")
def built(root_of_all):
    """A repository with the project's rules and stand-in scripts, run and committed on two branches.

    `other` differs from `main` by clusters.max_k. Tests work on copies.
    """
    return once(root_of_all / "built", build)


def build(path: Path) -> None:
    repository = workspace.create(path)
    standin.install(path)
    repository.picollm("dvc-yaml")
    repository.run("git", "checkout", "-q", "-b", "main")
    repository.snakemake("reports/final.html")
    repository.commit("a run")
    repository.run("git", "checkout", "-q", "-b", "other")
    repository.set("clusters", max_k=7)
    repository.snakemake("reports/final.html")
    repository.commit("another run")
    repository.run("git", "checkout", "-q", "main")
    repository.picollm("sync")


@pytest.fixture(scope="module")
def one_thread():
    """Sets torch to one thread: the models are too small for two, and equal bits need equal threads."""
    import torch  # a slow import that most tests don't need

    from picollm.model.device import set_up

    threads = torch.get_num_threads()
    set_up("cpu", 1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(optionalhook=True)  # never called without pytest-xdist
def pytest_testnodedown(node, error):
    """Reports how a process of pytest-xdist ended too early: a signal leaves no other trace."""
    if error:
        ended = node.gateway._io.popen.wait(timeout=10)
        print(f"\n{node.gateway.id} ended with exit code {ended} (a negative one: the signal)", flush=True)
