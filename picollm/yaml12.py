"""Reads YAML 1.2 as DVC does: files written by users (config.yaml, sentences) and by the tools (dvc.lock).

PyYAML, used by Snakemake, reads YAML 1.1, in which `5e-05` is text, `010` is 8 and `yes` is true.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor

from picollm.errors import PicollmError, one_line


class Constructor(SafeConstructor):
    """Constructs typed values; rejects integers with a leading zero and joins the halves of a character."""

    def construct_integer(self, node) -> int:
        if re.fullmatch(r"[-+]?0\d+", node.value):
            problem = f"{node.value} is octal for some readers and decimal for others: write it without the leading 0"
            raise ConstructorError(None, None, problem, node.start_mark)
        return self.construct_yaml_int(node)

    def construct_text(self, node) -> str:
        try:  # JSON encodes characters beyond U+FFFF as two escapes
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ConstructorError(None, None, "half of a character (a lone surrogate)", node.start_mark) from None


Constructor.add_constructor("tag:yaml.org,2002:int", Constructor.construct_integer)
Constructor.add_constructor("tag:yaml.org,2002:str", Constructor.construct_text)


def parse_yaml(text: str, name: str) -> object:
    """Parses a document. Raises PicollmError with `name` and the line if it is not YAML or has a duplicate key."""
    reader = YAML(typ="safe")
    reader.Constructor = Constructor
    try:
        return reader.load(text)
    except DuplicateKeyError as error:
        key = re.match(r'found duplicate key "(.*?)"', error.problem)
        fault = f"duplicate key {key[1]}" if key else error.problem
        raise PicollmError(f"{name}, line {error.problem_mark.line + 1}: {fault}: remove one") from None
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        fault = getattr(error, "problem", None) or one_line(error)
        raise PicollmError(f"{name}{place} is not YAML: {one_line(fault)}") from None


def read_yaml(path: str | Path) -> Any:
    """Reads a file with `parse_yaml`. Also raises FileNotFoundError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PicollmError(
            f"{path} is not YAML: it is not UTF-8 at byte {error.start}: restore or rewrite it"
        ) from None
    except IsADirectoryError:
        raise PicollmError(f"{path} is a folder, not a YAML file: name a file") from None
    return parse_yaml(text, str(path))
