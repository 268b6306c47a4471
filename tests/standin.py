"""A tiny stand-in for the heavy rules: the project's own rule table, with scripts that only hash their inputs.

Each output is a function of exactly what its rule depends on: the bytes of its inputs, its parameters, its code. So
the bytes show if an output is stale, and `expected` computes without either tool what a build from scratch gives.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import yaml

from picollm.config import load
from picollm.pipeline.fingerprint import code_files, fingerprint, imported_modules

SCRIPT = '''"""Stand-in for {rule}; it imports what the real script imports, so it has the same fingerprint."""

from picollm.pipeline.job import job
from standin import make


def never_called():
{imports}


with job() as rule:
    make(rule)
'''
SHARDS = 2


def install(root: Path) -> None:
    """Replaces the scripts of a temporary repository."""
    (root / "standin.py").write_bytes(Path(__file__).read_bytes())
    for path in (root / "workflow_scripts").glob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
        own = sorted({line for line in imports if "picollm" in line} | {"import json"})
        path.write_text(SCRIPT.format(rule=path.stem, imports="\n".join(f"    {line}" for line in own)))


def contents(rule: str, output: str, inputs: dict[str, str], cfg: dict, code: str) -> dict[str, bytes]:
    """Returns {path: bytes} of an output; `inputs` is {path: sha256 of its bytes}."""
    seed = json.dumps([rule, sorted(inputs.items()), cfg, code, output], sort_keys=True)
    digest = hashlib.sha256(seed.encode()).hexdigest()
    if output.startswith("reports/metrics/"):
        return {output: json.dumps({"value": int(digest[:8], 16)}).encode()}
    if not output.endswith("manifest.json"):
        return {output: f"{output}\n{digest}\n".encode()}
    shards = {f"shard-{i}.bin": f"{i} {digest}\n".encode() for i in range(SHARDS)}
    entries = [
        {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in shards.items()
    ]
    folder = Path(output).parent
    return {str(folder / name): data for name, data in shards.items()} | {output: json.dumps(entries).encode()}


def make(rule) -> None:
    inputs = [str(path) for path in rule.inputs if not path.startswith(".snakemake")]  # slices hold nothing new
    inputs = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in inputs}
    behave("before", rule)
    for output in rule.outputs:
        for path, data in contents(rule.name, output, inputs, rule.cfg, rule.code).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
            behave("within", rule)
    behave("after", rule)


def behave(when: str, rule) -> None:
    """Grants a test's wish for a rule: Python code that runs once in the job, before, during or after its writing."""
    wish = Path("logs") / f"{when}-{rule.name}.py"
    if wish.exists():
        try:
            granted = wish.rename(wish.with_suffix(".granted"))
        except FileNotFoundError:  # another job of the rule took it at the same time
            return
        text = granted.read_text()
        granted.unlink()
        exec(text, {"rule": rule})


def expected(root: Path) -> dict[str, bytes]:
    """Computes {path: bytes} of every artefact of a build from scratch, from dvc.yaml, config.yaml and the code."""
    for function in (code_files, imported_modules):
        function.cache_clear()
    config = load(root / "config.yaml")
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    made: dict[str, bytes] = {}
    waiting = dict(stages)
    while waiting:
        for rule, stage in list(waiting.items()):
            names = [dep for dep in stage["deps"] if not dep.endswith(".py")]
            names = [f"{dep}/manifest.json" if is_folder(dep) else dep for dep in names]
            if any(produced(name, waiting) for name in names):
                continue
            del waiting[rule]
            read = {name: made[name] if name in made else (root / name).read_bytes() for name in names}
            inputs = {name: hashlib.sha256(data).hexdigest() for name, data in read.items()}
            cfg = {section: config[section] for section in stage["params"][0]["config.yaml"]}
            code = fingerprint(code_files(Path("workflow_scripts") / f"{rule}.py", root), root)
            for out in written(stage):
                made |= contents(rule, f"{out}/manifest.json" if is_folder(out) else out, inputs, cfg, code)
    return made


def is_folder(path: str) -> bool:
    return Path(path).suffix == ""


def downstream(root: Path, rules: set[str]) -> set[str]:
    """Returns the rules and all that depend on them in dvc.yaml, by brute force."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    for _ in stages:
        outs = {out for rule in rules for out in written(stages[rule])}
        rules = rules | {rule for rule, stage in stages.items() if outs & set(stage["deps"])}
    return rules


def written(stage: dict) -> list[str]:
    return [*stage["outs"], *(path for entry in stage.get("metrics", []) for path in entry)]


def produced(name: str, waiting: dict) -> bool:
    """Returns True if a stage that was not made yet writes the path."""
    return any(name in (out, f"{out}/manifest.json") for stage in waiting.values() for out in written(stage))
