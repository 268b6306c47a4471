"""The probes of probes.json that can be tested, as one list: each has the model's accuracy by another name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picollm.mechanisms.probes import ProbesReport, Tested
    from picollm.stats import Accuracy


def tested_probes(report: ProbesReport) -> dict[str, tuple[Accuracy, Tested]]:
    """{probe: the model's accuracy, and all else that is known of it}."""
    found: dict[str, tuple[Accuracy, Tested]] = {}
    coreference = report["coreference"]
    if coreference["testable"] is True:
        found["coreference"] = (coreference["chosen_on_one_half"], coreference)
    for kind, entry in report["pairs"].items():
        if entry["testable"] is True:
            found[kind] = (entry["model"], entry)
    return found
