"""YAML 1.2, as DVC reads it: what people write (config.yaml, sentences) and what the tools record (dvc.lock).

PyYAML, which Snakemake uses, reads YAML 1.1, in which `5e-05` is text, `010` is 8 and `yes` is true.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor

from picollm.errors import PicollmError, one_line


class Constructor(SafeConstructor):
    """Values of their own types; an integer with a leading zero is none, and halves of a character become one."""

    def construct_integer(self, node) -> int:
        if re.fullmatch(r"[-+]?0\d+", node.value):
            problem = f"{node.value} is octal to some readers and decimal to others: write it without the leading 0"
            raise ConstructorError(None, None, problem, node.start_mark)
        return self.construct_yaml_int(node)

    def construct_text(self, node) -> str:
        try:  # JSON writes characters beyond U+FFFF as two escapes
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ConstructorError(None, None, "half of a character (a lone surrogate)", node.start_mark) from None


Constructor.add_constructor("tag:yaml.org,2002:int", Constructor.construct_integer)
Constructor.add_constructor("tag:yaml.org,2002:str", Constructor.construct_text)


def parse_yaml(text: str, name: str) -> object:
    """The document's value. Raises PicollmError, with `name` and the line, where it is not YAML or has a key twice."""
    reader = YAML(typ="safe")
    reader.Constructor = Constructor
    try:
        return reader.load(text)
    except DuplicateKeyError as error:
        key = re.match(r'found duplicate key "(.*?)"', error.problem)
        told = f"the key {key[1]} stands here twice" if key else error.problem
        raise PicollmError(f"{name}, line {error.problem_mark.line + 1}: {told}: remove one") from None
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        told = getattr(error, "problem", None) or one_line(error)
        raise PicollmError(f"{name}{place} is not YAML: {one_line(told)}") from None


def read_yaml(path: str | Path) -> Any:
    """A file's value, as `parse_yaml`. Raises FileNotFoundError too."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PicollmError(f"{path} is not YAML: it is not UTF-8 at byte {error.start}") from None
    return parse_yaml(text, str(path))
