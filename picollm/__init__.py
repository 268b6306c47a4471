"""picollm from Python: `picollm.load_model`, `maps`, `label_heads`, `induction`, `ablate` (docs/python.md)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Maps", "Model", "ablate", "induction", "label_heads", "load_model", "maps"]


def __getattr__(name: str) -> Any:
    """Imports picollm.api on first use: torch takes seconds, which no terminal command should wait for. No rule depends
    on picollm.api."""
    if name in __all__:
        return getattr(import_module("picollm.api"), name)
    raise AttributeError(f"module 'picollm' has no attribute {name!r}")
