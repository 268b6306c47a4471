"""Writes presets, and generates config.yaml and its documentation from picollm.config's descriptions.

    picollm preset NAME      write config.yaml
    picollm config-docs      write docs/configuration.md and docs/config.schema.json (picollm.reference)

presets/default.yaml holds every value; the others hold only their differences from it.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from picollm.config import Config, Section, check
from picollm.errors import PicollmError
from picollm.files import write_text
from picollm.yaml12 import parse_yaml, read_yaml

FOLDER = Path(__file__).parents[1] / "presets"
SCHEMA = "docs/config.schema.json"
HEADER = f"""# yaml-language-server: $schema={SCHEMA}
# Every parameter of the pipeline. docs/configuration.md says more; `picollm preset NAME` writes another preset.
"""
COMMENT, WIDTH = 29, 120  # columns


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset(name: str) -> dict[str, dict[str, Any]]:
    """Loads and checks all values of a preset. Raises PicollmError if there is no preset of that name."""
    if name not in names():
        raise PicollmError(f"there is no preset {name!r}: choose one of {', '.join(names())}")
    default, own = (read_yaml(FOLDER / f"{which}.yaml") for which in ("default", name))
    values = {section: keys | own.pop(section, {}) for section, keys in default.items()}
    return check(values | own, str(FOLDER / f"{name}.yaml"))


def about(name: str) -> str:
    """Returns the comment at the top of a preset."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def config_yaml(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats config.yaml with these values, each key commented with its description."""
    return HEADER + "".join(f"\n{section_yaml(name, keys)}" for name, keys in values.items())


def section_yaml(name: str, values: Mapping[str, Any]) -> str:
    section = section_of(name)
    purpose, rules = (section.__doc__ or "").split(": ")
    lines = [f"{name}:".ljust(COMMENT) + f"# {purpose} -> {rules}"]
    for key, field in section.model_fields.items():
        entry = f"  {key}: {written(values[key])}"
        line = entry.ljust(COMMENT) + f"# {field.description}"
        if not line.startswith(f"{entry} "):
            line = f"{entry}  # {field.description}"
        lines += [line] if len(line) <= WIDTH else [f"  # {field.description}", entry]
    return "\n".join(lines) + "\n"


def section_of(name: str) -> type[Section]:
    return cast(type[Section], Config.model_fields[name].annotation)


def written(value: Any) -> str:
    """Formats a value as YAML on one line."""
    text, writer = io.StringIO(), YAML()
    writer.default_flow_style, writer.width = True, 1000
    writer.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    writer.dump(value, text)
    return text.getvalue().removesuffix("...\n").strip()


def write_preset(name: str, path: Path, force: bool) -> list[str]:
    """Writes a preset's config.yaml; returns the changed keys as "section.key: old -> new".

    Raises PicollmError if the file has edits that neither a preset nor git has, unless `force`.
    """
    values = preset(name)
    old = path.read_text(encoding="utf-8") if path.exists() else config_yaml(values)
    try:
        before = check(parse_yaml(old, str(path)), str(path))
    except PicollmError:
        before = None
    if not force and before not in [preset(name) for name in names()] and old != committed(path):
        raise PicollmError(f"{path} has uncommitted edits: commit them, or add --force to discard them")
    write_text(path, config_yaml(values))
    changes = [
        f"{section}.{key}: {written(before[section][key])} -> {written(value)}"
        for section, keys in values.items()
        for key, value in keys.items()
        if before and before[section][key] != value
    ]
    return changes if before else [f"{path} was not valid and was replaced"]


def committed(path: Path) -> str | None:
    """Returns the file as in git's last commit; None outside git."""
    command = ["git", "show", f"HEAD:./{path.name}"]
    done = subprocess.run(command, cwd=path.absolute().parent, capture_output=True)
    return done.stdout.decode() if done.returncode == 0 else None


def schema() -> str:
    """Returns the JSON schema with which editors complete and check config.yaml."""
    return json.dumps(Config.model_json_schema(), indent=1) + "\n"


def documentation() -> str:
    """Generates docs/configuration.md: a table per section, with the values of each preset that differ."""
    shown = ["default", *(name for name in names() if name != "default")]
    values = {name: preset(name) for name in shown}
    parts = [
        "# Configuration\n\n"
        "All parameters are in `config.yaml`; every key must be there. `picollm preset NAME` writes one of these:\n\n"
        + "".join(f"- **{name}**: {about(name)}\n" for name in shown)
        + "\nA wrong key or value stops a run before it starts, with one line that says what is allowed. Editors that "
        f"read `{SCHEMA}` (named in the first line of `config.yaml`) complete keys and underline mistakes.\n\n"
        "This page is generated by `picollm config-docs` from the descriptions in `picollm/config.py`.\n"
    ]
    for name in Config.model_fields:
        section = section_of(name)
        purpose, rules = (section.__doc__ or "").split(": ")
        rows = "".join(
            f"| `{key}` | {str(field.description).replace('|', '·')} | {allowed(field)} | "
            + in_presets({which: values[which][name][key] for which in shown})
            + " |\n"
            for key, field in section.model_fields.items()
        )
        head = "| key | meaning | allowed | value |\n|---|---|---|---|\n"
        parts.append(f"## `{name}`\n\n{purpose}. Read by {rules}.\n\n{head}{rows}")
    return "\n".join(parts)


def allowed(field: FieldInfo) -> str:
    """Describes the type and range of a key."""
    limits = {Gt: "> {gt}", Ge: ">= {ge}", Lt: "< {lt}", Le: "<= {le}", MinLen: "at least {min_length}"}
    words = [limits[type(limit)].format_map(vars_of(limit)) for limit in field.metadata if type(limit) in limits]
    return " ".join([type_name(field.annotation), *words]).replace("|", "·")


def vars_of(limit: Any) -> dict[str, Any]:
    return {name: getattr(limit, name) for name in limit.__slots__}


def type_name(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    inner = get_args(annotation)
    if annotation in names:
        return names[annotation]
    if inner and all(isinstance(value, str) for value in inner):
        return "one of these"
    if str(annotation).startswith("list"):
        return "list"
    return " or ".join(type_name(one) for one in inner)


def in_presets(values: Mapping[str, Any]) -> str:
    """Formats the default's value and those of the presets that differ."""
    default = values["default"]
    others = [f"{name}: {written(value)}" for name, value in values.items() if value != default]
    return "; ".join([f"`{written(default)}`", *others]).replace("|", "·")
