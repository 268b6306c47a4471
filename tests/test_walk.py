"""Random walks: deeds of users, disks, clocks and both tools, in any order; then one plain run must repair everything.

    make test-walk                     # 100 walks
    make test-walk WALKS=1000 SEED=7   # another number, other walks

After each walk `snakemake` ends with the bytes of a build from scratch, both tools have nothing to do, and no command
has printed a traceback. A walk that fails is shortened by Hypothesis and printed as a program; what it teaches becomes
a row of test_scenarios.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import standin
import workspace
from conftest import once
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from test_interruptions import GROUP, JOB
from test_scenarios import age, append, flip, old_but_edited, read, reorder, swap, uncache, write
from workspace import Workspace

WALKS, SEED, PARTS = int(os.environ.get("WALKS", 100)), int(os.environ.get("SEED", 0)), 10
RULES = ("pack", "train", "heads", "clusters", "page")
OUTPUTS = (
    "data/pack/manifest.json", "data/pack/shard-0.bin", "data/pack/shard-1.bin", "data/weights.bin",
    "reports/train.json", "reports/metrics/train.json", "reports/heads.json", "reports/metrics/heads.json",
    "reports/clusters.json", "data/clusters.npz", "reports/final.html",
)  # fmt: skip
SOURCES = ("corpus.txt", "picollm/attention/sentences.yaml", "picollm/report/html/data.html.j2")
CODE = ("picollm/attention/heads.py", "picollm/report/page.py", "workflow_scripts/train.py", "workflow_scripts/page.py")
IMPORTS = {"heads": "picollm.attention.heads", "page": "picollm.report.page"}
TARGETS = ("reports/heads.json", "reports/clusters.json", "data/weights.bin")
VALUES = {
    "tokens": ("shard_rows", (512, 513)), "pretrain": ("final_lr", (0.1, 5e-05)), "heads": ("kappa", (0.25, 0.3)),
    "clusters": ("max_k", (3, 4, 5)), "report": ("title", ("one", "two")),
}  # fmt: skip

section, output, target = st.sampled_from(sorted(VALUES)), st.sampled_from(OUTPUTS), st.sampled_from(TARGETS)
source, code, step = st.sampled_from(SOURCES), st.sampled_from(CODE), st.sampled_from(RULES)
value = st.integers(0, 2)


def build(path: Path) -> None:
    """The project's machinery around five rules, run and committed on the branches `main` and `other`."""
    repository = workspace.create(path)
    for old in [*(path / "workflow_scripts").glob("*.py"), *(path / "rules").glob("*.smk")]:
        if old.name != "common.smk":
            old.unlink()
    for name in RULES:
        imported = IMPORTS.get(name)
        text = f"from {imported} import __name__ as _\n" if imported else "import json\n"
        (path / f"workflow_scripts/{name}.py").write_text(text)
    standin.install(path)
    (path / "corpus.txt").write_text("a text\n")
    shutil.copy(Path(__file__).parent / "walk_rules.smk", path / "rules/walk.smk")
    lines = (path / "Snakefile").read_text().splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith("include:")]
    at = next(i for i, line in enumerate(lines) if line.startswith("rule all"))
    lines[at:at] = ['include: "rules/common.smk"\n', 'include: "rules/walk.smk"\n\n\n']
    (path / "Snakefile").write_text("".join(lines))
    repository.picollm("dvc-yaml")
    repository.run("git", "checkout", "-q", "-b", "main")
    repository.snakemake("--quiet", "all")
    repository.commit("a run")
    repository.run("git", "checkout", "-q", "-b", "other")
    repository.set("clusters", max_k=7)
    repository.snakemake("--quiet", "all")
    repository.commit("another run")
    repository.run("git", "checkout", "-q", "main")
    repository.picollm("sync")


@pytest.fixture(scope="session")
def small(root_of_all):
    return once(root_of_all / "small", build)


class Walk(RuleBasedStateMachine):
    """One repository; each rule of the machine is a deed."""

    start: Workspace  # set by the test

    @initialize()
    def copy(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="walk-"))
        self.w = self.start.copy(self.folder / "repository")
        self.path = self.w.path

    def run(self, *command: str, **environment: str) -> str:
        """Runs a command that may fail, but only with a line for the user."""
        text = self.w.run(*command, ok=None, **environment)
        assert "Traceback" not in text, text
        return text

    def snakemake(self, *arguments: str) -> str:
        return self.run("snakemake", "--cores", "all", "--quiet", "all", *arguments)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    # --- People edit

    @rule(section=section, value=value)
    def set_a_value(self, section, value):
        key, values = VALUES[section]
        self.w.set(section, **{key: values[value % len(values)]})

    @rule()
    def take_the_config_back(self):
        self.git("checkout", "-q", "--", "config.yaml")

    @rule()
    def swap_two_values(self):
        swap("heads", "content", "broad")(self.w)

    @rule()
    def write_the_config_in_another_order(self):
        reorder(self.w)

    @rule(path=code)
    def edit_code(self, path):
        write(path, append)(self.w)

    @rule()
    def take_the_code_back(self):
        self.git("checkout", "-q", "--", "picollm", "workflow_scripts")

    @rule()
    def touch_all_code(self):
        for file in self.path.glob("picollm/**/*.py"):
            file.touch()

    @rule(path=source)
    def edit_a_source(self, path):
        write(path, append)(self.w)

    @rule(path=source)
    def edit_a_source_with_an_old_time_stamp(self, path):
        old_but_edited(path)(self.w)

    @rule(path=st.sampled_from([*SOURCES, *OUTPUTS]), days=st.sampled_from([-1, 1]))
    def move_a_clock(self, path, days):
        if (self.path / path).exists():
            age(path, days)(self.w)

    # --- Both tools run

    @rule()
    def run_snakemake(self):
        self.snakemake()

    @rule()
    def ask_snakemake(self):
        self.run("snakemake", "--cores", "all", "-n", "--quiet", "rules")

    @rule(path=target)
    def run_snakemake_up_to(self, path):
        self.snakemake("--", path)

    @rule(name=step)
    def force_a_rule(self, name):
        self.snakemake("-R", name, "--until", name)

    @rule()
    def snakemake_touch(self):
        self.snakemake("--touch")

    @rule()
    def dvc_repro(self):
        self.run("dvc", "repro")

    @rule(name=step)
    def dvc_repro_one_stage(self, name):
        self.run("dvc", "repro", "-s", name)

    @rule(k=st.sampled_from([3, 5, 8]))
    def dvc_experiment(self, k):
        self.run("dvc", "exp", "run", "-q", "-S", f"config.yaml:clusters.max_k={k}")

    @rule()
    def dvc_checkout(self):
        self.run("dvc", "checkout", "-q", "--force")

    @rule(name=step)
    def dvc_commit(self, name):
        """Not forced, so it accepts only what is as recorded: forced, it would accept anything."""
        self.run("dvc", "commit", "-q", name)

    @rule(verb=st.sampled_from(["sync", "track", "sync --dry-run", "verify", "verify --fix"]))
    def picollm(self, verb):
        text = self.w.picollm(*verb.split(), ok=None)
        assert "Traceback" not in text, text

    # --- Kills

    @rule(name=step, when=st.sampled_from(["before", "within", "after"]), whom=st.sampled_from([GROUP, JOB]))
    def kill_snakemake(self, name, when, whom):
        self.kill(name, when, whom, "snakemake", "--cores", "all", "--quiet", "all")

    @rule(name=step, when=st.sampled_from(["before", "within", "after"]))
    def kill_dvc(self, name, when):
        self.kill(name, when, GROUP, "dvc", "repro")

    def kill(self, name, when, whom, *command):
        wish = self.path / "logs" / f"{when}-{name}.py"
        wish.parent.mkdir(exist_ok=True)
        wish.write_text(whom)
        environment = workspace.ENVIRONMENT | {"PYTHONPATH": str(self.path)}
        shared = {"cwd": self.path, "env": environment, "start_new_session": True, "text": True}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **shared)
        assert "Traceback" not in done.stdout, done.stdout
        wish.unlink(missing_ok=True)

    # --- git

    @rule()
    def commit_all(self):
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "a walk")

    @rule(branch=st.sampled_from(["main", "other"]))
    def checkout(self, branch):
        self.git("checkout", "-q", branch)

    @rule(branch=st.sampled_from(["main", "other"]))
    def checkout_by_force(self, branch):
        self.git("checkout", "-q", "-f", branch)

    @rule(path=st.sampled_from(["dvc.lock", "config.yaml", "reports/metrics"]))
    def checkout_of_another_branch(self, path):
        self.git("checkout", "-q", "other", "--", path)

    @rule(side=st.sampled_from(["ours", "theirs"]))
    def merge(self, side):
        self.commit_all()
        self.git("merge", "-q", "-X", side, "other")
        self.git("merge", "--abort")

    @rule()
    def stash(self):
        self.git("stash", "-q")

    @rule()
    def stash_and_return(self):
        self.git("stash", "-q")
        self.git("stash", "pop", "-q")

    @rule()
    def reset(self):
        self.git("reset", "-q", "--hard")

    # --- Disks

    @rule(path=output)
    def lose_a_file(self, path):
        (self.path / path).unlink(missing_ok=True)

    @rule(path=output)
    def flip_a_bit(self, path):
        if (self.path / path).exists():
            write(path, flip)(self.w)

    @rule(path=output)
    def edit_by_hand(self, path):
        if (self.path / path).exists():
            write(path, append)(self.w)

    @rule()
    def swap_shards(self):
        one, two = (self.path / f"data/pack/shard-{n}.bin" for n in (0, 1))
        if one.exists() and two.exists():
            one.rename(one.with_name("x")), two.rename(one), one.with_name("x").rename(two)

    @rule(name=st.sampled_from(["data/pack/foreign.bin", "data/notes.txt", "reports/.train.json.partial"]))
    def leave_a_foreign_file(self, name):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text("not ours")

    @rule(top=st.sampled_from(["data", "reports", "data/pack", ".snakemake", "logs", "dvc.lock", ".dvc/cache"]))
    def wipe(self, top):
        path = self.path / top
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @rule(top=st.sampled_from([".snakemake/metadata", ".snakemake/picollm", ".snakemake/picollm/receipts"]))
    def wipe_records(self, top):
        shutil.rmtree(self.path / top, ignore_errors=True)

    @rule(name=step, text=st.sampled_from(["", "{}", '{"rule": "pack"}']))
    def damage_a_receipt(self, name, text):
        path = self.path / f".snakemake/picollm/receipts/{name}.json"
        if path.exists():
            path.write_text(text)

    @rule(path=output)
    def lose_a_cache_object(self, path):
        with suppress(FileNotFoundError, StopIteration):  # no such file or object
            uncache(path)(self.w)

    @rule()
    def gc(self):
        self.run("dvc", "gc", "-w", "-f", "-q")

    @rule()
    def move_the_folder(self):
        elsewhere = self.path.with_name("else where")
        self.path.rename(elsewhere)
        elsewhere.rename(self.path)

    @rule()
    def copy_without_time_stamps(self):
        elsewhere = self.path.with_name("elsewhere")
        shutil.copytree(self.path, elsewhere, copy_function=shutil.copyfile, symlinks=True)
        shutil.rmtree(self.path)
        elsewhere.rename(self.path)

    @rule()
    def share_the_cache(self):
        self.run("dvc", "cache", "dir", "--local", str(self.folder / "shared"))

    @rule(pull=st.booleans())
    def clone(self, pull):
        """The walk continues in a clone; the first repository stays as its remote."""
        origin = Path(tempfile.mkdtemp(dir=self.folder)) / "origin"
        cache = self.run("dvc", "cache", "dir").strip()
        self.path.rename(origin)
        subprocess.run(["git", "clone", "-q", str(origin), str(self.path)], check=True)
        for branch in ("main", "other"):
            self.git("branch", "-q", branch, f"origin/{branch}")
        remote = cache.replace(str(self.path), str(origin))
        self.run("dvc", "remote", "add", "-q", "-d", "--local", "origin", remote)
        if pull:
            self.run("dvc", "pull", "-q")

    # --- The end

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self.end()
        finally:
            shutil.rmtree(self.folder)

    def end(self) -> None:
        text = self.w.snakemake("--quiet", "all")
        assert "Traceback" not in text, text
        made = standin.expected(self.path)
        assert [path for path, data in made.items() if read(self.w, path) != data] == []
        with ThreadPoolExecutor() as pool:
            planned, changed = pool.submit(self.w.planned), pool.submit(self.w.changed)
            assert (planned.result(), changed.result()) == (set(), set())


@pytest.mark.slow
@pytest.mark.walk
@pytest.mark.parametrize("part", range(PARTS))
def test_after_any_walk_one_run_sets_all_right(small, part):
    class Started(Walk):
        start = small

    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        seeded(SEED * PARTS + part)(Started),
        settings=settings(
            max_examples=max(1, WALKS // PARTS), stateful_step_count=10, deadline=None, database=None,
            suppress_health_check=checks, phases=(Phase.generate, Phase.shrink), print_blob=False,
        ),
    )  # fmt: skip
