"""Renders the report: one HTML file that contains every picture, script and attention map and opens anywhere, offline.

The page's parts are in picollm/report/html: a template for the page and one for each chapter, a style sheet, and the
explorer's scripts, one module per view. Content-Security-Policy allows the page's own script and no requests.
A chapter whose reports are missing says what to run; the other chapters are complete.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from picollm.engine.table import on_cpu
from picollm.report import explorer, story
from picollm.report.findings import ORIGINAL_SHARES
from picollm.report.gallery import embedded
from picollm.report.glossary import GLOSSARY
from picollm.report.head_map import head_map
from picollm.report.known_answers import known_answers
from picollm.report.scoreboard import board, every_claim
from picollm.report.sources import Sources
from picollm.report.style import LETTERS, css

HTML = Path(__file__).parent / "html"
SCRIPTS = ("data", "colour", "state", "tiles", "heat", "arcs", "facts", "main")  # each after those it imports
LIMIT = 8_000_000  # bytes of the page: sentences that do not fit are left out of the explorer
TEXT, TEXT_OF_HEAD = 300_000, 6_000  # bytes reserved for text, and for each head, besides figures and explorer
NO_EXPLORER = {
    "layers": 0, "heads_a_layer": 0, "first": 0, "steps": [], "thresholds": {}, "facts": [], "categories": [],
}  # fmt: skip


class Chapter(NamedTuple):
    """A chapter of the page, with the template ID.html.j2. It is shown if all reports that it `needs` exist; `lead`
    makes its opening sentence from all reports."""

    id: str
    title: str
    needs: tuple[str, ...]
    lead: Callable[[Mapping[str, Any]], str]


OVERVIEW = ("data", "training", "heads", "ablation", "mechanisms", "probes", "findings", "benchmark")
CHAPTERS = (
    Chapter("explorer", "Explorer", ("heads", "mechanisms", "ablation", "emergence", "maps"),
            lambda c: "Where does each word look? Choose a sentence, then a head."),
    Chapter("data", "Data", ("data", "training"), lambda c: story.data_sentence(c["data"], c["training"])),
    Chapter("training", "Training", ("training",), lambda c: story.training_sentence(c["training"])),
    Chapter("heads", "Heads", ("heads", "ablation", "mechanisms"), lambda c: story.heads_sentence(c["heads"])),
    Chapter("families", "Families", ("clusters",), lambda c: story.families_sentence(c["clusters"])),
    Chapter("causes", "Causes", ("ablation", "mechanisms", "emergence", "heads"),
            lambda c: story.causes_sentence(c["ablation"])),
    Chapter("probes", "Probes", ("probes", "heads", "training"),
            lambda c: story.probes_sentence(c["probes"], c["training"])),
    Chapter("claims", "Claims", ("findings", "heads"), lambda c: story.claims_sentence(every_claim(c))),
    Chapter("attention", "Attention", ("figures",), lambda c: (
        "Examples from each category: all heads at once, and where the layers move the words.")),
    Chapter("engines", "Engines", ("engine", "benchmark"), lambda c: story.engines_sentence(c["engine"])),
    Chapter("speed", "Speed", ("benchmark",), lambda c: story.speed_sentence(c["benchmark"])),
    Chapter("profile", "Profile", ("profile",), lambda c: story.profile_sentence(c["profile"])),
    Chapter("again", "Reproducibility", (), lambda c: "One command reproduces every number above."),
)  # fmt: skip


def percent(share: float | None, digits: int = 1) -> str:
    return "not defined" if share is None else f"{share * 100:.{digits}f} %"


def number(value: float | int | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def short(value: float) -> str:
    """Formats a number with about three significant digits."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def chance(p: float | None, name: str = "") -> str:
    """Formats a p or a q, preceded by its name if one is given."""
    if p is None:
        return "–"
    return (f"{name} = {p:.3f}" if p >= 0.001 else f"{name} < 0.001").removeprefix(" = ").strip()


def with_interval(row: dict, digits: int = 2) -> Markup:
    """Formats a statistic and its 95 % interval: {value, low, high}."""
    if row["value"] is None:
        return Markup("–")
    interval = "" if row["low"] is None else f"{row['low']:.{digits}f} … {row['high']:.{digits}f}"
    return Markup('{} <span class="interval">{}</span>').format(f"{row['value']:.{digits}f}", interval)


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.replace("'", ""))


def style_sheet(palette: str) -> Markup:
    """Returns the page's style sheet, with the colours of the figures."""
    light, dark = css(palette), css(palette, dark=True)
    return Markup(
        f":root {{ {light} }}\n"
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}\n'
        f':root[data-theme="dark"] {{ {dark} }}\n' + (HTML / "style.css").read_text(encoding="utf-8")
    )


def script() -> str:
    """Joins the explorer's modules into one script, because a page opened from disk may not import others."""
    parts = [(HTML / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    bodies = []
    for name, text in zip(SCRIPTS, parts, strict=True):
        exported = re.findall(r"^export (?:function|const) (\w+)", text, re.M)
        text = re.sub(r"^export ", "", text, flags=re.M)
        text = re.sub(r'^import \* as (\w+) from "\./(\w+)\.js";', r"const \1 = \2_module;", text, flags=re.M)
        text = re.sub(r'^import (\{[^}]*\}) from "\./(\w+)\.js";', r"const \1 = \2_module;", text, flags=re.M)
        bodies.append(f"const {name}_module = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }};\n}})();")
    return '"use strict";\n' + "\n".join(bodies)


def as_json(value: object) -> Markup:
    """Returns JSON that can't close the script element that contains it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HTML), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, number, short, chance, with_interval, slug, story.better)
    made.filters |= {function.__name__: function for function in filters}
    return made


def render(figures: Path, sources: Sources, cfg: Mapping[str, Any]) -> str:
    """Renders the page, with equal bytes for equal inputs. Raises PicollmError if a figure is damaged.

    `figures` is their manifest; `cfg` has the config's sections report and corpus. The reports include `seeds` if there
    is a spread over seeds.
    """
    c, pictures, groups = sources.reports, {}, {}
    if "figures" not in sources.absent:
        pictures = embedded(figures)
    for entry in pictures.values():
        if entry["group"]:
            groups.setdefault(entry["group"], []).append(entry)
    leads = {chapter.id: chapter.lead(c) for chapter in CHAPTERS if not sources.absent.keys() & set(chapter.needs)}
    explorer_data, maps = explorer_of(sources, cfg["report"]["sentences"], pictures) if "explorer" in leads else (
        NO_EXPLORER, [])  # fmt: skip
    code = script()
    return environment().get_template("page.html.j2").render(
        **({"seeds": None} | dict(c)),
        chapters=CHAPTERS,
        cfg=cfg,
        style=style_sheet(cfg["report"]["palette"]),
        script=Markup(code),
        script_sha256=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        explorer_json=as_json(explorer_data),
        maps=maps,
        headline=story.headline(c, cfg["corpus"]["source"]),
        underline=story.underline(c["training"]) if "training" in c else None,
        numbers=story.five_numbers(c),
        head_map=head_map(c["heads"], c["ablation"]) if {"heads", "ablation"} <= c.keys() else None,
        scoreboard=board(every_claim(c)),
        known=known_answers(),
        leads=leads,
        notes={"overview": notes(sources, OVERVIEW)} | {row.id: notes(sources, row.needs) for row in CHAPTERS},
        absent=sources.absent,
        entries={"coreference": c["probes"]["coreference"], **c["probes"]["pairs"]} if "probes" in c else {},
        original=ORIGINAL_SHARES,
        pictures=pictures,
        groups=groups,
        glossary=GLOSSARY,
        letters=LETTERS,
        on_cpu=on_cpu,
    )  # fmt: skip


def notes(sources: Sources, needs: tuple[str, ...]) -> list[str]:
    """Lists a chapter's missing and outdated reports, and what to run."""
    why = sources.absent | sources.old
    return [why[name] for name in needs if name in why]


def explorer_of(sources: Sources, most: int, pictures: Mapping[str, Mapping]) -> tuple[dict, list[str]]:
    """Returns the explorer's data, and the maps of the sentences that fit into the page."""
    c, heads = sources.reports, sources.reports["heads"]
    costs = [head["delta"] for head in c["ablation"]["heads"]]
    facts = {
        "layers": heads["n_layers"],
        "heads_a_layer": heads["n_heads"],
        "first": costs.index(max(costs)),
        "steps": [row["step"] for row in c["emergence"]["snapshots"]],
        "thresholds": explorer.thresholds(heads),
        "facts": explorer.facts(heads, c["mechanisms"], c["ablation"], c["emergence"]),
    }
    taken = len(as_json(facts)) + sum(len(entry["uri"]) + len(entry["csv"] or "") for entry in pictures.values())
    room = LIMIT - TEXT - TEXT_OF_HEAD * len(costs) - taken
    shown, maps = explorer.sentences(sources.categories, len(costs), most, min(explorer.BUDGET, room))
    return facts | {"categories": shown}, maps
