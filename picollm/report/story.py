"""Makes the report's sentences from the chapters' files: the headline, five numbers, and one sentence per chapter.

A sentence states a result and says if the evidence for it is weak. All other sentences are in the chapters' templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from picollm.attention.labels import LABELS
from picollm.attention.structure import LEAST_HEADS
from picollm.engine.table import best_row
from picollm.report.claims import VERDICTS, DecidedClaim
from picollm.report.summary import on_test, rank, speed_line
from picollm.report.tested_probes import tested_probes
from picollm.stats import SIGNIFICANT
from picollm.wording import count, listed

if TYPE_CHECKING:
    from picollm.attention.clusters import ClustersReport
    from picollm.attention.heads import HeadsReport
    from picollm.data.packing import TokensManifest
    from picollm.engine.build import EngineManifest
    from picollm.engine.shapes import BenchmarkReport
    from picollm.mechanisms.ablation import AblationReport
    from picollm.mechanisms.mechanisms import MechanismsReport
    from picollm.mechanisms.probes import ProbesReport
    from picollm.model.training_report import TrainingReport
    from picollm.profiling.profile import NoProfile, ProfileReport

SOURCES = {
    "enwiki-sample": "Wikipedia articles",
    "wikitext-103": "articles of WikiText-103",
    "local": "texts",
    "grammar": "articles of a grammar",
}
SMALL = 1e7  # training tokens
LOOKS = {
    "diagonal": "at the token itself",
    "local": "nearby",
    "token-specific": "for particular tokens",
    "content-based": "at tokens chosen by their content, from no known set",
    "global": "everywhere equally",
    "sink": "at the first position",
    "mixed": "at nothing in particular",
}


def headline(c: Mapping[str, Any], source: str) -> str:
    """Says what was trained, on what text, how well it predicts and which head it needs, as far as reports `c` go."""
    if not {"data", "training"} <= c.keys():
        return "This page is incomplete: each chapter says what is missing and what to run."
    training, articles = c["training"], c["data"]["splits"]["train"]["articles"]
    tokens = training["tokens"]
    size = f"{tokens / 1e6:.1f} million" if tokens >= 1e6 else f"{tokens:,}"
    read = f"After {size} tokens of {articles:,} {SOURCES[source]}, this small transformer"
    start = "This imported transformer" if training["imported"] else read
    good = f"{start} predicts {rank(*on_test(training))}"
    if not {"mechanisms", "ablation"} <= c.keys():
        return f"{good}."
    return f"{good}; it {reach(c['mechanisms'])}, and {missed(c['ablation'])}."


def reach(mechanisms: MechanismsReport) -> str:
    """Says how much context the model measurably uses."""
    context = mechanisms["context"]
    if context["enough"] is None:
        return f"still gains from more than the last {count(context['curve'][-1]['tokens'], 'token')} of context"
    if context["enough"] == 1:
        return "shows no gain from more than the last token"
    return f"shows no gain from more than the last {context['enough']} tokens of context"


def missed(ablation: AblationReport) -> str:
    """Names the head with the largest certain increase of the loss."""
    certain = [head for head in ablation["heads"] if head["q"] < SIGNIFICANT and head["delta"] > 0]
    if not certain:
        return "needs no single head for certain"
    return f"loses most without head {max(certain, key=lambda head: head['delta'])['name']}"


def underline(training: TrainingReport) -> str:
    loss, losses = on_test(training)
    trained = (
        f"best after step {training['best_step']:,} of {training['steps']:,}; " if not training["imported"] else ""
    )
    return (
        f"{training['parameters'] / 1e6:.1f} M parameters, {trained}one seed. Test loss {loss:.2f} nats per token "
        f"(bigram {losses['bigram']:.2f}, 4-gram {losses['four_gram']:.2f}, with a cache of the row "
        f"{losses['four_gram_cache']:.2f}). Attention weights are not explanations; effects are measured separately:"
    )


def five_numbers(c: Mapping[str, Any]) -> list[dict]:
    """Returns five numbers with interval, description and baseline; fewer if a report of `c` is missing, or if no probe
    or backend could run."""
    numbers = [make(c[name]) for name, make in NUMBERS.items() if name in c]
    return [row for row in numbers if row]


def costliest(ablation: AblationReport) -> dict:
    top = max(ablation["heads"], key=lambda head: head["delta"])
    middle = median(head["delta"] for head in ablation["heads"])
    what = f"lost without head {top['name']}, the most of {len(ablation['heads'])}"
    return number(top["delta"], top, "nats", what, middle, "the median head")


def near_by(heads: HeadsReport) -> dict:
    local, null = heads["labels"]["local"], heads["sharpened_null"]
    shares = {end: 100 * local[end] for end in ("low", "high")}
    untrained = 100 * null["labels"]["local"] / max(1, null["heads"])
    what = "of the heads attend to nearby tokens"
    return number(100 * local["share"], shares, "%", what, untrained, "sharpened untrained heads")


def short_context(mechanisms: MechanismsReport) -> dict:
    curve = mechanisms["context"]["curve"]
    row = next((row for row in curve if row["tokens"] == 4), curve[0])
    what = f"lost when only the last {count(row['tokens'], 'token')} are read"
    return number(row["cost"], row, "nats", what, 0.0, "all of the context")


def clearest_probe(probes: ProbesReport) -> dict | None:
    tested = tested_probes(probes)
    if not tested:
        return None
    name, (own, entry) = min(tested.items(), key=lambda item: item[1][1]["p"])
    rival = max([0.5, *(row["accuracy"] for row in entry["baselines"].values())])
    shares = {end: 100 * own[end] for end in ("low", "high")}
    what = f"of {name.removesuffix('s')} items correct, the clearest of {count(len(tested), 'probe')}"
    return number(100 * own["accuracy"], shares, "%", what, 100 * rival, "best rival")


def fastest(benchmark: Mapping) -> dict | None:
    best = best_row(benchmark)
    if best is None:
        return None
    ratio = best["speedups"]["eager-fp32"]
    return number(ratio["ratio"], ratio, "×", f"as fast: {best['backend']}, batch 1", 1.0, "eager fp32")


NUMBERS = {
    "ablation": costliest, "heads": near_by, "mechanisms": short_context, "probes": clearest_probe,
    "benchmark": fastest,
}  # fmt: skip


def number(value: float, ends: Mapping, unit: str, what: str, baseline: float, than: str) -> dict:
    """Builds an entry; `place` is 0 to 1 on a strip a little longer than the range of the shown values."""
    low, high = ends["low"], ends["high"]
    shown = [value, low, high, baseline]
    margin = max(max(shown) - min(shown), 1e-9) / 16
    least, span = min(shown) - margin, max(shown) - min(shown) + 2 * margin
    place = {
        name: round((x - least) / span, 4) for name, x in zip(("value", "low", "high", "baseline"), shown, strict=True)
    }
    return {
        "value": value,
        "low": low,
        "high": high,
        "unit": unit,
        "what": what,
        "baseline": baseline,
        "than": than,
        "place": place,
    }


def data_sentence(data: TokensManifest, training: TrainingReport) -> str:
    train, validation = data["splits"]["train"], data["splits"]["validation"]
    size = "enough for words and short phrases, but no more" if train["tokens"] < SMALL else "a text of some size"
    who = "The text here has" if training["imported"] else "The model read"
    return (
        f"{who} {count(train['articles'], 'article')} with {train['tokens']:,} tokens, {size}; the model is evaluated "
        f"on {validation['articles']:,} others."
    )


def training_sentence(training: TrainingReport) -> str:
    loss, losses = on_test(training)
    on_validation = training["four_gram_cache_loss"] - training["validation_loss"]
    return (
        f"On text that was not used for any choice, it predicts {rank(loss, losses)}: {loss:.2f} nats per token, "
        f"{better(losses['four_gram'] - loss)} than a 4-gram and {better(losses['four_gram_cache'] - loss)} than one "
        f"with a cache of the row. On the validation split it is {better(on_validation)} than the latter."
    )


def better(nats: float) -> str:
    """Formats how much lower a loss is than another."""
    return f"{abs(nats):.2f} nats {'better' if nats >= 0 else 'worse'}"


def heads_sentence(heads: HeadsReport) -> str:
    total = len(heads["heads"])
    counts = {label: heads["labels"][label]["count"] for label in LABELS}
    parts = [f"{n} look{'s' if n == 1 else ''} {LOOKS[label]}" for label, n in counts.items() if n]
    untrained = heads["sharpened_null"]
    usual = max(LABELS, key=lambda label: untrained["labels"][label])
    chance = ""
    if counts[usual] and untrained["labels"][usual] > untrained["heads"] / 2:
        chance = (
            f" {usual.capitalize()} is what chance gives: so are {untrained['labels'][usual]} of {untrained['heads']} "
            "sharpened untrained heads."
        )
    return f"Of {total} heads, {listed(parts)}.{chance}"


def families_sentence(clusters: ClustersReport) -> str:
    shape = clusters["structure"]
    if not shape["found"]:
        return f"The heads form no families: {shape['because'][0]}."
    several = sum(row["size"] >= LEAST_HEADS for row in clusters["clusters"])
    alone = sum(row["size"] for row in clusters["clusters"] if row["size"] < LEAST_HEADS)
    rest = f", plus {count(alone, 'other head')}" if alone else ""
    return (
        f"The heads fall into {count(several, 'family', 'families')} with similar attention{rest} (silhouette "
        f"{clusters['silhouette']:.2f}; one cloud without clusters gives {shape['silhouette_one_cloud_95']:.2f})."
    )


def causes_sentence(ablation: AblationReport) -> str:
    heads = ablation["heads"]
    needed = [head for head in heads if head["q"] < SIGNIFICANT and head["delta"] > 0]
    in_the_way = sum(head["q"] < SIGNIFICANT and head["delta"] < 0 for head in heads)
    way = f"{in_the_way or 'none'} {'are' if in_the_way > 1 else 'is'} harmful"
    if not needed:
        return f"No single head is certainly needed; {way}."
    top = max(needed, key=lambda head: head["delta"])
    kinds = {kind: row["delta"] for kind, row in top["on"].items() if row["low"] > 0}
    most = max(kinds, key=lambda kind: kinds[kind]) if kinds else None
    on = f", most on targets that are {KIND_WORDS.get(most, most)} ({kinds[most]:+.3f})" if most else ""
    return (
        f"Without {top['name']} the model loses {top['delta']:.3f} nats per token{on}; {len(needed)} of {len(heads)} "
        f"heads matter individually, {way}."
    )


KIND_WORDS = {
    "function word": "function words", "punctuation": "punctuation", "inside a word": "the inside of words",
    "number": "numbers", "content word": "content words", "repeated": "repeated in the row", "rare": "rare",
}  # fmt: skip


def probes_sentence(probes: ProbesReport, training: TrainingReport) -> str:
    entries = {"coreference": probes["coreference"], **probes["pairs"]}
    learnt = [name for name, entry in entries.items() if entry["shows"]]
    failed = [name for name, entry in entries.items() if entry["testable"] and not entry["shows"]]
    untested = [name for name, entry in entries.items() if not entry["testable"]]
    whose = "this" if training["imported"] else "its"
    if not learnt and not failed:
        return f"None of the probes can be tested: {whose} text lacks the words."
    parts = [f"The model shows {listed(learnt)}"] if learnt else [f"The model does not show {listed(failed)}"]
    if failed and learnt:
        parts.append(f"not {listed(failed)}")
    if untested:
        parts.append(f"{listed(untested)} can't be tested: {whose} text lacks the words")
    return "; ".join(parts) + "."


def claims_sentence(claims: Sequence[DecidedClaim]) -> str:
    held, failed, untested, other = (sum(row["verdict"] == verdict for row in claims) for verdict in VERDICTS)
    return (
        f"Of {len(claims)} claims of the original, {held} held on this model, {failed} did not, {untested} can't be "
        f"tested here, and {other} can't be compared."
    )


def engines_sentence(engine: EngineManifest) -> str:
    built = [name for name, row in engine["backends"].items() if not row["reason"]]
    return f"{count(len(built), 'engine')} built from the checkpoint: {listed(built) or 'none'}."


def speed_sentence(benchmark: BenchmarkReport) -> str:
    return speed_line(benchmark)


def profile_sentence(profile: ProfileReport | NoProfile) -> str:
    if "needs" in profile:
        return str(profile["needs"])
    name, row = max(profile["ranges"].items(), key=lambda item: item[1]["share"])
    waits = profile["ranges"].get("data_wait")
    wait = f"; it waits for data {waits['share']:.1%} of the time".replace("%", " %") if waits else ""
    return f"A training step spends {row['share']:.0%} of its time in {name}{wait}.".replace("% of", " % of")
