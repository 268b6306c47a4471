"""Answers of the same tests on a text of known structure: if a test says "yes" there, its "no" elsewhere has meaning.

They come from one run of presets/grammar.yaml, are stored in known_answers.json and shown next to those of other runs.
To write them from the reports of a finished run:

    python -m picollm.report.known_answers
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from picollm.files import read_json, write_json
from picollm.report.claims import FAILED, HELD
from picollm.report.findings import FindingsReport
from picollm.report.tested_probes import tested_probes

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport
    from picollm.mechanisms.probes import ProbesReport

ANSWERS = Path(__file__).parent / "html" / "known_answers.json"


def known_answers() -> dict[str, dict[str, str]]:
    """Reads the answers: {"claims": {claim: words}, "probes": {probe: words}, "relations": {relation: words}}."""
    return read_json(ANSWERS)


def answers(findings: FindingsReport, probes: ProbesReport, heads: HeadsReport) -> dict[str, dict[str, str]]:
    """Makes them from a run's reports, for what its text decides: linguistic roles, and what emerges in training."""
    return {
        "claims": {
            row["claim"]: row["verdict"]
            for row in findings["claims"]
            if (row["section"] == "C" or row["claim"].endswith("emerge in training"))
            and row["verdict"] in (HELD, FAILED)
        },
        "probes": {
            name: f"{'yes' if entry['shows'] else 'no'}, {100 * own['accuracy']:.0f} %"
            for name, (own, entry) in tested_probes(probes).items()
        },
        "relations": {
            kind: f"{row['effect']:+.3f}, p {row['p']:.2g}"
            for kind, row in heads["relations"].items()
            if row["p"] is not None
        },
    }


if __name__ == "__main__":
    findings, probes, heads = (read_json(Path("reports", f"{name}.json")) for name in ("findings", "probes", "heads"))
    write_json(ANSWERS, answers(findings, probes, heads))
