"""The configuration: the shipped files are complete, and every mistake gives one line that says what is allowed."""

import inspect
import os
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from refusals import refusal

from picollm import config, inputs, presets
from picollm.data.corpora import Corpus
from picollm.data.packing import tokenize_pack
from picollm.model.device import set_up
from picollm.model.training import TrainingConfig
from picollm.model.transformer import ModelConfig

ROOT = Path(__file__).parents[1]
KEYS = [f"{name}.{key}" for name, field in config.Config.model_fields.items() for key in field.annotation.model_fields]
REMOVED = object()


def document():
    return presets.preset("smoke")


def changed(**edits):
    """Returns the smoke preset with `section__key=value` or `section=value` set or removed."""
    values = deepcopy(document())
    for name, value in edits.items():
        *sections, key = name.split("__")
        target = values[sections[0]] if sections else values
        if value is REMOVED:
            del target[key]
        else:
            target[key] = value
    return values


def test_the_default_lists_every_key():
    default = yaml.safe_load((ROOT / "presets/default.yaml").read_text(encoding="utf-8"))
    assert [f"{name}.{key}" for name, section in default.items() for key in section] == KEYS


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        # unknown keys
        ({"pretrain__batch_row": 16}, ["pretrain.batch_row = 16", "not a known key", "did you mean batch_rows?"]),
        ({"tokens__zzz": 1}, ["tokens.zzz = 1", "allowed are context, shard_rows"]),
        ({"pretrian": {"lr": 1}}, ["pretrian", "did you mean pretrain?"]),
        # wrong types
        ({"pretrain__lr": "4e-3"}, ["pretrain.lr = '4e-3' (str)", "number"]),
        ({"pretrain__length": 2.5}, ["pretrain.length = 2.5 (float)", "integer"]),
        ({"pretrain__length": "20"}, ["pretrain.length = '20' (str)", "integer"]),
        ({"pretrain__seed": True}, ["pretrain.seed = True (bool)", "integer"]),
        ({"pretrain__warmup": False}, ["pretrain.warmup = False (bool)", "number"]),
        ({"model__tied": 1}, ["model.tied = 1 (int)", "boolean"]),
        ({"report__title": 7}, ["report.title = 7 (int)", "string"]),
        ({"benchmark__batches": 4}, ["benchmark.batches = 4 (int)", "list"]),
        ({"engine__compute_capabilities": [8.6]}, ["engine.compute_capabilities.0 = 8.6 (float)", "'8.6'"]),
        ({"corpus__hub": None}, ["corpus.hub = None", "string"]),
        ({"heads": None}, ["heads = None", "dictionary"]),
        ({"heads": [1]}, ["heads = [1] (list)", "dictionary"]),
        # out of range
        ({"model__d_ff": 0}, ["model.d_ff = 0 (int)", "greater than 0"]),
        ({"model__dropout": 1.0}, ["model.dropout = 1.0", "less than or equal to 0.9"]),
        ({"model__rope_theta": float("inf")}, ["model.rope_theta = inf", "finite"]),
        ({"corpus__fraction": 0.0}, ["corpus.fraction = 0.0", "greater than 0"]),
        ({"corpus__fraction": 1.01}, ["corpus.fraction = 1.01", "less than or equal to 1"]),
        ({"tokens__context": 4}, ["tokens.context = 4", "greater than or equal to 8"]),
        ({"pretrain__lr": float("nan")}, ["pretrain.lr = nan", "finite"]),
        ({"pretrain__seed": -1}, ["pretrain.seed = -1", "greater than or equal to 0"]),
        ({"pretrain__seed": 1 << 31}, ["pretrain.seed = 2147483648", "less than 2147483648"]),
        ({"benchmark__batches": [1, 0]}, ["benchmark.batches.1 = 0", "greater than 0"]),
        ({"benchmark__batches": []}, ["benchmark.batches = []", "at least 1"]),
        ({"pretrain__unit": "hours"}, ["pretrain.unit = 'hours'", "'steps' or 'epochs'"]),
        ({"engine__backends": ["onnx"]}, ["engine.backends.0 = 'onnx'", "'eager-fp32'"]),
        ({"benchmark__batches": [1, 64]}, ["benchmark.batches = [1, 64] must not exceed engine.max_batch = "]),
        # missing
        ({"pretrain__seed": REMOVED}, ["pretrain.seed is missing", "picollm preset default"]),
        ({"heads": REMOVED}, ["heads is missing", "picollm preset default"]),
        # keys that must fit each other
        (
            {"corpus__source": "local"},
            ["corpus.path must name a folder, zip archive or file when corpus.source is local"],
        ),
        ({"corpus__source": "local", "corpus__path": ""}, ["corpus.path must name a folder"]),
        ({"model__d_model": 30}, ["model.d_model = 30", "2 x model.n_heads = 14"]),
        ({"model__d_model": 21}, ["model.d_model = 21", "2 x model.n_heads = 14"]),
        ({"model__rope_cache": 63}, ["model.rope_cache = 63", "tokens.context = 64"]),
    ],
)
def test_each_mistake_gives_a_one_line_error_with_file_key_and_what_is_allowed(edits, words):
    text = refusal(config.check, changed(**edits), "my.yaml")
    assert text.startswith("my.yaml: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "edits",
    [
        {"model__rope_cache": 64, "tokens__context": 64},
        {"model__d_model": 14, "model__n_heads": 7},
        {"corpus__source": "local", "corpus__path": "texts"},
        {"pretrain__warmup": 1, "pretrain__final_lr": 0},  # a whole number is a number
        {"heads__window": 64, "tokens__context": 8},
        {"corpus__fraction": 1.0},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(edits):
    assert config.check(changed(**edits)) == changed(**edits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["must hold sections", "corpus", "report"]),
        ("- corpus\n", ["must hold sections"]),
        ("corpus: {\nsource", ["is not YAML"]),
        ("corpus: *missing\n", ["is not YAML"]),
    ],
)
def test_what_is_no_configuration_at_all(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    message = refusal(config.load, path)
    assert message.startswith(str(path))
    assert all(word in message for word in words)


@pytest.mark.parametrize(("written", "value"), [("2e-2", 0.02), ("0.00005", 5e-05), ("5e-05", 5e-05), ("1_0e-1", 1.0)])
def test_numbers_are_yaml_1_2(tmp_path, written, value):
    """PyYAML reads YAML 1.1, in which 2e-2 is text; DVC reads 1.2, as everything here must."""
    assert config.load(smoke_with(tmp_path, "  lr: 0.02 ", f"  lr: {written} "))["pretrain"]["lr"] == value


@pytest.mark.parametrize(
    ("line", "instead", "words"),
    [
        ("  lr: 0.02 ", "  lr: yes ", ["pretrain.lr = 'yes' (str)", "number"]),
        ("  lr: 0.02 ", "  lr: 12:30 ", ["pretrain.lr = '12:30' (str)"]),
        ("  clip: 1.0 ", "  clip: .inf ", ["pretrain.clip = inf", "finite"]),
        ("  clip: 1.0 ", "  clip: .nan ", ["pretrain.clip = nan", "finite"]),
        ("  lr: 0.02 ", "  lr: 0.02\n  lr: 0.03 ", ["line ", "duplicate key lr"]),
        ("model: ", "tokens: ", ["duplicate key tokens"]),
        ("  batch_rows: ", "  seed: 010\n  batch_rows: ", ["010", "without the leading 0"]),
    ],
)
def test_what_readers_of_yaml_disagree_on_is_refused_by_name(tmp_path, line, instead, words):
    text = refusal(config.load, smoke_with(tmp_path, line, instead))
    assert all(word in text for word in words), text


def smoke_with(folder, line, instead):
    source = presets.config_yaml(document())
    assert f"\n{line}" in source
    (folder / "config.yaml").write_text(source.replace(f"\n{line}", f"\n{instead}"), encoding="utf-8")
    return folder / "config.yaml"


def test_a_missing_or_foreign_file_gives_a_one_line_error(tmp_path):
    assert "is missing" in refusal(config.load, tmp_path / "config.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"report: {title: caf\xe9}\n")
    assert "is not YAML" in refusal(config.load, tmp_path / "latin.yaml")


def test_overrides_on_the_command_line_are_refused():
    config.refuse_overrides({})
    text = refusal(config.refuse_overrides, {"report": 1})
    assert "--config and --configfile are refused" in text and "edit config.yaml" in text


@pytest.mark.parametrize("name", ["a{b}.txt", "a$b.txt", "a\nb.txt", "a*.txt", os.fsdecode(b"caf\xe9.txt")])
def test_a_name_that_the_tools_can_not_write_down_is_refused(tmp_path, name):
    (tmp_path / name).write_text("text")
    corpus = document()["corpus"] | {"source": "local", "path": str(tmp_path)}
    text = refusal(inputs.corpus_files, corpus)
    assert "corpus.path: the name" in text and "rename it" in text


@pytest.mark.parametrize("there", ["gpt2", "sharded", "pickle"])
def test_a_checkpoint_in_another_form_says_which_is_read(tmp_path, there):
    folder = tmp_path / there
    if there != "gpt2":
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / ("model-00001-of-00002.safetensors" if there == "sharded" else "pytorch_model.bin")).touch()
    text = refusal(inputs.model_files, document()["model"] | {"checkpoint": str(folder)})
    assert "model.safetensors is missing" in text and "pytorch_model.bin and hub names are not supported" in text


def keywords(function):
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.POSITIONAL_ONLY}


@pytest.mark.parametrize(
    ("section", "consumed"),
    [
        ("corpus", {field.name for field in fields(Corpus) if field.init}),
        ("tokens", keywords(tokenize_pack) - {"sources", "manifest_path", "workers", "tokenizer"}),
        ("compute", keywords(set_up)),
        ("model", {field.name for field in fields(ModelConfig)} - {"vocab_size", "context"} | {"checkpoint"}),
        ("pretrain", {field.name for field in fields(TrainingConfig)}),
    ],
)
def test_a_section_holds_exactly_what_its_consumer_takes(section, consumed):
    assert set(config.Config.model_fields[section].annotation.model_fields) == consumed
