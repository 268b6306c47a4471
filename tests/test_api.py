"""The functions of docs/python.md: their names and results, and the notebook that uses all of them."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from refusals import refusal

import picollm
from picollm.attention.analysis import analyse_model
from picollm.attention.labels import LABELS
from picollm.data.tokenizer import VOCAB_SIZE
from picollm.files import write_json
from picollm.model.huggingface import export
from picollm.model.transformer import ModelConfig, Transformer
from picollm.presets import preset
from picollm.report.sources import Sources, with_seeds
from picollm.seed_summary import for_report, lines, recipe, summary
from picollm.seeds import labels_of

ROOT = Path(__file__).parents[1]
ENDS = ("", "_low", "_high")
TEXTS = ["The cat sat on the mat.", "Iron is a heavy grey metal.", "Most owls hunt small animals at night.", "He left."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(VOCAB_SIZE, 32, 16, 2, 2, 16, 0.0, True, 1e4, 64))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(20)
    path = tmp_path_factory.mktemp("model")
    export(model.eval(), path)
    return path


def test_the_names_and_their_parameters_are_those_of_the_page():
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)`", page, re.M))
    assert set(told) == {name for name in picollm.__all__ if name.islower()}
    for name, parameters in told.items():
        own = inspect.signature(getattr(picollm, name)).parameters.values()
        assert parameters == ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in own)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = picollm.nothing


def test_importing_the_package_loads_no_torch():
    code = "import sys, picollm; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_maps_labels_and_costs(folder):
    model = picollm.load_model(folder)
    assert model.heads == ["L0H0", "L0H1", "L1H0", "L1H1"]
    found = picollm.maps(model, TEXTS[0])
    assert found.tokens[0] == "<|endoftext|>" and "".join(found.tokens[1:]) == TEXTS[0]
    assert found.weights.shape == (2, 2, 8, 8) and found.weights.sum(-1) == pytest.approx(1, abs=1e-5)
    heads = picollm.label_heads(model, TEXTS, null_models=1)
    assert list(heads["name"]) == model.heads and {"label", "kappa_local", "kappa_local_low"} <= set(heads)
    scores = picollm.induction(model)
    assert list(scores["name"]) == model.heads and not scores["induction_head"].any()
    columns = [f"{score}{end}" for score in ("previous", "duplicate", "induction", "copying") for end in ENDS]
    assert list(scores) == ["name", *columns, "induction_head"]
    costs = picollm.ablate(model, TEXTS)
    assert list(costs) == ["name", "delta", "low", "high", "p", "q"] and (costs["low"] <= costs["high"]).all()
    assert np.isfinite(costs["delta"]).all()


def test_both_kinds_of_models_lose_the_same_without_a_head(folder, tmp_path):
    """Returns the project's model, and the same weights in transformers' StableLM."""
    pytest.importorskip("transformers", reason="pip install -e '.[models]'")
    from picollm.api import Model
    from picollm.model.foreign_folder import load_foreign_model

    own = picollm.load_model(folder)
    other = Model(load_foreign_model(str(folder)), own.tokenizer)
    assert picollm.maps(other, TEXTS[1]).weights == pytest.approx(picollm.maps(own, TEXTS[1]).weights, abs=1e-5)
    assert picollm.ablate(other, TEXTS)["delta"].to_numpy() == pytest.approx(
        picollm.ablate(own, TEXTS)["delta"].to_numpy(), abs=1e-5
    )


def test_what_can_not_be_done_gives_a_one_line_error(folder):
    model = picollm.load_model(folder)
    assert "the model's context is 32" in refusal(picollm.maps, model, "word " * 60)
    assert "has fewer than two tokens" in refusal(picollm.maps, model, "word")
    assert "at least two sentences" in refusal(picollm.ablate, model, TEXTS[:1])
    assert "the model's context is 32" in refusal(picollm.ablate, model, [TEXTS[0], "word " * 60])
    assert "at least one text" in refusal(picollm.label_heads, model, [])


def test_the_example_of_your_own_maps():
    done = subprocess.run(
        [sys.executable, "examples/your_maps.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "L0H0: local, previous-token" in done.stdout and "L0H1: token-specific, punctuation" in done.stdout
    assert "L0H2: global" in done.stdout


def test_the_notebook_runs(folder, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(ROOT / "examples/tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    setup = notebook.cells[1]
    setup.source = setup.source.replace('"data/model"', repr(str(folder))).replace("NULLS = 3", "NULLS = 1")
    shutil.copytree(folder, tmp_path / "model")
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2


def test_seeds_are_compared_by_share_and_by_head():
    labels = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 4]])
    found = summary([1, 2, 3], [6.0, 6.2, 6.4], labels, "recipe")
    assert found["validation_loss"] == {"mean": pytest.approx(6.2), "least": 6.0, "most": 6.4}
    assert found["shares"]["diagonal"] == {"mean": 0.5, "least": 0.5, "most": 0.5}
    assert found["agreement"] == pytest.approx((0 + 3 / 4 + 0) / 3)
    assert found["agreement_by_chance"] == pytest.approx((0.5 + 0.375 + 0.375) / 3)
    assert lines(found)[0] == "3 seeds: validation loss 6.200 (6.000 to 6.400)"
    assert summary([1], [6.0], labels[:1], "recipe")["agreement"] is None


@pytest.mark.heavy
def test_heads_of_a_seed_are_labelled_as_in_a_report(tmp_path):
    """One layer is sharp, so that more than one class occurs."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(VOCAB_SIZE, 128, 28, 2, 7, 16, 0.0, True, 1e4, 128))
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.mul_(60)
    few = yaml.safe_load((ROOT / "picollm/attention/sentences.yaml").read_text())
    for category in few.values():
        category["sentences"] = category["sentences"][:3]
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(few))
    config = preset("smoke")
    config["attention"] |= {"sentences": str(tmp_path / "few.yaml")}
    config["heads"] |= {"null_models": 2, "bootstraps": 10}
    report, _, _ = analyse_model(
        model.eval(), tmp_path / "few.yaml", config["attention"]["style"], tmp_path, device=torch.device("cpu"),
        heads=config["heads"], clusters=config["clusters"],
    )  # fmt: skip
    labels = [LABELS[k] for k in labels_of(model, config, torch.device("cpu"))]
    assert labels == [head["label"] for head in report["heads"]] and len(set(labels)) > 1


def test_a_spread_over_seeds_belongs_to_its_configuration_and_text(tmp_path):
    config, manifest, file = preset("smoke"), tmp_path / "manifest.json", tmp_path / "seeds.json"
    manifest.write_text("{}")
    write_json(file, summary([1, 2], [6.0, 6.1], np.zeros((2, 4), int), recipe(config, manifest)))
    assert for_report(file, config, manifest)["current"]
    shown = config | {"report": config["report"] | {"seeds": str(file)}}
    assert with_seeds(Sources({}), shown, str(manifest)).reports["seeds"]["current"]
    assert with_seeds(Sources({}), config, str(manifest)) == Sources({}), "no file is named"
    lacking = Sources({}, absent={"data": "nowhere is missing"})
    assert with_seeds(lacking, shown, "nowhere") == lacking
    other_seed = config | {"pretrain": config["pretrain"] | {"seed": 7}}
    assert for_report(file, other_seed, manifest)["current"], "a seed is what it is over"
    for section, values in (("pretrain", {"length": 99}), ("model", {"d_ff": 99}), ("heads", {"kappa": 0.5})):
        edited = config | {section: config[section] | values}
        assert not for_report(file, edited, manifest)["current"], section
    manifest.write_text("{ }")
    assert not for_report(file, config, manifest)["current"]
    file.write_text("{}")
    assert "is of another format: run `picollm seeds` again" in refusal(for_report, file, config, manifest)
