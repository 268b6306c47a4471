"""What takes minutes: the original's preset on a small corpus, and a machine that lacks what is optional."""

import json
import os
import shutil
from pathlib import Path

import pytest
import workspace
import yaml

pytestmark = pytest.mark.slow

SENTENCE = (
    "The {n} {kind} of the valley was built in {year} and served {m} villages until the river changed its course . "
)


def wikitext(articles: int, seed: int) -> str:
    """Text in WikiText's format: headings between blank lines, sections, paragraphs of one line."""
    lines = []
    for a in range(articles):
        kind = ("mill", "bridge", "school", "chapel")[(a + seed) % 4]
        lines += ["", f" = {kind.title()} number {a + seed} = ", ""]
        for section in ("History", "Architecture"):
            body = "".join(
                SENTENCE.format(n=a + i, kind=kind, year=1700 + (7 * a + i) % 200, m=i + 2) for i in range(30)
            )
            lines += [f" = = {section} = = ", "", f" {body}", ""]
    return "\n".join(lines) + "\n"


def test_the_originals_preset_on_a_local_corpus_reaches_the_report(tmp_path):
    project = workspace.create(tmp_path / "original", preset="wikitext-103")
    text = project.path / "text"
    text.mkdir()
    (text / "wiki.train.tokens").write_text(wikitext(24, 0))
    (text / "wiki.valid.tokens").write_text(wikitext(6, 100))
    (text / "wiki.test.tokens").write_text(wikitext(6, 200))
    project.set("corpus", source="local", path="text")
    # The model, its context and its precision are the preset's; only lengths shrink.
    project.set("pretrain", length=2, unit="steps", batch_rows=2, compile="none", validation_rows=2)
    project.set("heads", bootstraps=100, null_models=1)
    project.set("clusters", bootstraps=2)
    project.set("engine", compute_capabilities=["8.9"], max_batch=1)
    project.set("benchmark", batches=[1], rounds=3, block_seconds=0.2, gate_rows=4)
    project.set("profile", tool="torch.profiler", steps=3)
    project.picollm("dvc-yaml")
    assert (
        "text/wiki.train.tokens"
        in yaml.safe_load((project.path / "dvc.yaml").read_text())["stages"]["prepare_corpus"]["deps"]
    )

    project.snakemake("reports/final.html")

    training = json.loads((project.path / "reports/training.json").read_text())
    assert training["parameters_non_embedding"] == 12_802_944 and training["model"]["context"] == 384
    splits = json.loads((project.path / "data/tokens/manifest.json").read_text())["splits"]
    assert [splits[split]["articles"] for split in ("train", "validation", "test")] == [5, 6, 6]  # ceil(0.2 x 24)
    assert (project.path / "reports/final.html").stat().st_size > 100_000
    assert project.planned() == project.changed() == set()
    with open(text / "wiki.train.tokens", "a") as file:
        file.write("One more line .\n")
    assert project.changed() == {"prepare_corpus"} and "prepare_corpus" in project.planned()


def test_without_a_compiler_and_without_tensorrt_it_says_so_and_goes_on(tmp_path):
    project = workspace.create(tmp_path / "no-compiler")
    project.set("pretrain", compile="head")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "git", "python3"):  # all that the tools call; no compiler among them
        tools.joinpath(name).symlink_to(shutil.which(name))
    path = f"{workspace.ENVIRONMENT['PATH'].split(os.pathsep)[0]}{os.pathsep}{tools}"
    assert not any(shutil.which(name, path=path) for name in ("g++", "c++", "clang++"))
    # Python runs this file at its start; a module that is None can't be found.
    (project.path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorrt_rtx'] = None\n")
    text = project.snakemake("trt_compile", PATH=path, CXX="")
    assert "no C++ compiler found" in text and "no TensorRT engine" in text
    training = json.loads(Path(project.path, "reports/training.json").read_text())
    assert training["loss_path"] == "eager (no C++ compiler)"
    engine = json.loads(Path(project.path, "data/engine/manifest.json").read_text())
    assert engine["engine"] is None and [file["file"] for file in engine["files"]] == ["model.fp32.onnx"]
