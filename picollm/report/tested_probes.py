"""Lists the testable probes of probes.json in one form, because each stores the model's accuracy under another name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picollm.mechanisms.probes import ProbesReport, Tested
    from picollm.stats import Accuracy


def tested_probes(report: ProbesReport) -> dict[str, tuple[Accuracy, Tested]]:
    """Returns {probe: (the model's accuracy, the probe's whole entry)}."""
    probes: dict[str, tuple[Accuracy, Tested]] = {}
    coreference = report["coreference"]
    if coreference["testable"] is True:
        probes["coreference"] = (coreference["chosen_on_one_half"], coreference)
    for kind, entry in report["pairs"].items():
        if entry["testable"] is True:
            probes[kind] = (entry["model"], entry)
    return probes
