"""What the same tests say of text whose structure is known: a "no" elsewhere means something where they say "yes" here.

The answers of one run of presets/grammar.yaml, kept as known_answers.json and shown beside those of any other run.
Written from the reports of a finished run:

    python -m picollm.report.known_answers
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from picollm.files import write_json
from picollm.report.findings import FAILED, HELD

ANSWERS = Path(__file__).parent / "html" / "known_answers.json"


def known_answers() -> dict[str, dict[str, str]]:
    """What the tests said: {"claims": {claim: words}, "probes": {probe: words}, "relations": {relation: words}}."""
    return json.loads(ANSWERS.read_text(encoding="utf-8"))


def answers(findings: Mapping, probes: Mapping, heads: Mapping) -> dict[str, dict[str, str]]:
    """The same, from a run's reports: of what its text decides, linguistic roles and what emerges."""
    entries = {"coreference": probes["coreference"], **probes["pairs"]}
    return {
        "claims": {
            row["claim"]: row["verdict"]
            for row in findings["claims"]
            if (row["section"] == "C" or row["claim"].endswith("emerge in training"))
            and row["verdict"] in (HELD, FAILED)
        },
        "probes": {name: probe_words(entry) for name, entry in entries.items() if entry["testable"]},
        "relations": {
            kind: f"{row['effect']:+.3f}, p {row['p']:.2g}"
            for kind, row in heads["relations"].items()
            if row["p"] is not None
        },
    }


def probe_words(entry: Mapping) -> str:
    own = entry.get("chosen_on_one_half") or entry["model"]
    return f"{'yes' if entry['shows'] else 'no'}, {100 * own['accuracy']:.0f} %"


if __name__ == "__main__":
    reports = (json.loads(Path("reports", f"{name}.json").read_bytes()) for name in ("findings", "probes", "heads"))
    write_json(ANSWERS, answers(*reports))
