"""A temporary repository with the project's tracked tree, in which tests run the real tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from picollm.presets import config_yaml, preset

ROOT = Path(__file__).parent.parent
FEW = "few.yaml"
HELPERS = {"tokenize_slice", "extract_category", "ablate_slice"}  # rules that do parts of other rules' work
FOLDERS = ("rules", "workflow_scripts", "picollm", "presets", "profiles")
FILES = ("Snakefile", "config.yaml", ".dvcignore", ".gitignore", ".gitattributes")
ENVIRONMENT = os.environ | {"PYTHONPATH": "", "COLUMNS": "200", "PICOLLM_UNCALIBRATED": "1"}
for person in ("AUTHOR", "COMMITTER"):  # git may have no user on this machine
    ENVIRONMENT |= {f"GIT_{person}_NAME": "somebody", f"GIT_{person}_EMAIL": "somebody@example.org"}
for name in ("DVC_STAGE", "PICOLLM_WRITE_DVC_YAML", "PICOLLM_RUN", "PICOLLM_UNGUARDED"):
    ENVIRONMENT.pop(name, None)
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@dataclass
class Workspace:
    path: Path

    @property
    def paths(self) -> str:
        """The PYTHONPATH of its commands."""
        return str(self.path)

    def run(self, *command: str, ok: bool | None = True, **environment: str) -> str:
        """Returns standard output and errors together; asserts success, failure (ok=False) or neither (ok=None)."""
        done = subprocess.run(
            command,
            cwd=self.path,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | {"PYTHONPATH": self.paths} | environment,
        )
        assert ok is None or (done.returncode == 0) == ok, f"{' '.join(command)} -> {done.returncode}\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, ok: bool | None = True, **environment: str) -> str:
        return self.run("snakemake", "--cores", "all", *arguments, ok=ok, **environment)

    def picollm(self, *arguments: str, ok: bool | None = True, **environment: str) -> str:
        return self.run(sys.executable, "-m", "picollm.cli", *arguments, ok=ok, **environment)

    def copy(self, path: Path) -> Workspace:
        """Copies the repository, with its time stamps."""
        shutil.copytree(self.path, path, symlinks=True)
        return Workspace(path)

    def planned(self) -> set[str]:
        """Returns the rules that Snakemake would run, without `all`."""
        return self.jobs(self.snakemake("-n", "--quiet", "rules"))

    @staticmethod
    def jobs(text: str) -> set[str]:
        """Returns the rules in the table of `snakemake -n --quiet rules`; parts of a rule count as that rule."""
        if "Nothing to be done" in text:
            return set()
        table = text.split("Job stats:")[1].split("Reasons:")[0].split("total")[0]
        return {line.split()[0] for line in table.splitlines()[3:] if line.strip()} - {"all"} - HELPERS

    def changed(self) -> set[str]:
        """Returns the stages that DVC reports as changed."""
        return set(yaml.safe_load(self.run("dvc", "status", "--json")) or {})

    def set(self, section: str, **values: object) -> None:
        """Edits config.yaml; comments are lost, which neither tool notices."""
        config = yaml.safe_load((self.path / "config.yaml").read_text())
        config[section] |= values
        (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def take_few_sentences(self) -> None:
        """Analyses a user's own file of sentences, six of each category: fewer are faster."""
        categories = yaml.safe_load((ROOT / "picollm/attention/sentences.yaml").read_text())
        for category in categories.values():
            category["sentences"] = category["sentences"][:6]
        (self.path / FEW).write_text(yaml.safe_dump(categories, sort_keys=False))
        self.set("attention", sentences=FEW)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)


def set_preset(root: Path, name: str) -> None:
    (root / "config.yaml").write_text(config_yaml(preset(name)))


def create(path: Path, name: str = "smoke") -> Workspace:
    path.mkdir(parents=True)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, path / file)
    workspace = Workspace(path)
    set_preset(path, name)
    workspace.run("git", "init", "-q")
    workspace.run("dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", path / ".dvc" / "config")
    workspace.picollm("dvc-yaml")
    return workspace
