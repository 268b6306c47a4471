"""config.yaml, its presets and its documentation: one description of each key, and no edits are lost."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from refusals import refusal

from picollm import presets
from picollm.config import Config, load

ROOT = Path(__file__).parents[1]


def test_the_comments_of_the_configuration_are_the_descriptions():
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert text == presets.config_yaml(load(ROOT / "config.yaml")), "run `picollm preset NAME`"  # whatever its values


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_holds_only_what_differs_and_survives_the_file(tmp_path, name):
    own = yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text(encoding="utf-8"))
    default = presets.preset("default")
    same = [key for section, keys in own.items() for key, value in keys.items() if default[section][key] == value]
    assert name == "default" or not same
    (tmp_path / "config.yaml").write_text(presets.config_yaml(presets.preset(name)), encoding="utf-8")
    assert load(tmp_path / "config.yaml") == presets.preset(name)
    assert presets.about(name).endswith(".")


def test_every_line_of_the_file_can_be_read_at_once():
    assert max(map(len, presets.config_yaml(presets.preset("default")).splitlines())) <= presets.WIDTH


def test_the_rules_that_a_section_names_are_those_that_read_it():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    read = {name: set(stage["params"][0]["config.yaml"]) for name, stage in stages.items()}
    for name in Config.model_fields.keys() - {"compute"}:
        rules = {rule for rule, sections in read.items() if name in sections}
        assert set(presets.section_of(name).__doc__.split(": ")[1].split(", ")) == rules, name


def test_the_schema_refuses_what_the_pipeline_refuses():
    jsonschema = pytest.importorskip("jsonschema")
    schema, values = json.loads(presets.schema()), presets.preset("smoke")
    jsonschema.validate(values, schema)
    for section, key, wrong in (("pretrain", "unit", "hours"), ("model", "d_ff", 0), ("tokens", "typo", 1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values | {section: values[section] | {key: wrong}}, schema)


def git(folder, *arguments):
    person = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", *person, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.heavy
def test_a_preset_replaces_another_or_what_git_has_but_no_edits(tmp_path):
    path = tmp_path / "config.yaml"
    assert presets.write_preset("smoke", path, force=False) == []
    changes = presets.write_preset("cpu-study", path, force=False)
    assert "model.d_model: 28 -> 224" in changes and load(path) == presets.preset("cpu-study")
    edited = path.read_text().replace("d_model: 224", "d_model: 448")
    path.write_text(edited)
    assert "has uncommitted edits" in refusal(presets.write_preset, "smoke", path, force=False)
    assert path.read_text() == edited
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "mine")
    assert "model.d_model: 448 -> 28" in presets.write_preset("smoke", path, force=False)


def test_a_file_that_is_damaged_is_only_replaced_by_force(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("corpus: {\n")
    assert "has uncommitted edits" in refusal(presets.write_preset, "smoke", path, force=False)
    assert presets.write_preset("smoke", path, force=True) and load(path) == presets.preset("smoke")


def test_an_unknown_preset_names_those_there_are(tmp_path):
    text = refusal(presets.write_preset, "large", tmp_path / "config.yaml", force=False)
    assert (
        "there is no preset 'large': choose one of cpu-study, default, grammar, smoke, wikitext-103, wikitext-cpu"
        in text
    )
