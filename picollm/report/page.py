"""The report: one HTML file with every picture, script and attention map inside, so that it opens anywhere, offline.

The page's parts are in picollm/report/html: a template for the page and one for each chapter, a style sheet, and the
explorer's scripts, one module a view. Content-Security-Policy lets the page's own script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from picollm.attention.maps import CategoryMaps
from picollm.engine.table import on_cpu
from picollm.report import explorer, story
from picollm.report.findings import ORIGINAL_SHARES
from picollm.report.gallery import embedded
from picollm.report.glossary import GLOSSARY
from picollm.report.head_map import head_map
from picollm.report.scoreboard import board, every_claim
from picollm.report.style import LETTERS

HTML = Path(__file__).parent / "html"
SCRIPTS = ("data", "colour", "state", "tiles", "heat", "arcs", "facts", "main")  # each after what it imports
CHAPTERS = (
    ("overview", "Overview"), ("explorer", "Explorer"), ("data", "Data"), ("training", "Training"), ("heads", "Heads"),
    ("families", "Families"), ("causes", "Causes"), ("probes", "Probes"), ("claims", "Claims"),
    ("attention", "Attention"), ("engines", "Engines"), ("speed", "Speed"), ("profile", "Profile"),
    ("again", "Reproducibility"),
)  # fmt: skip


def percent(share: float | None, digits: int = 1) -> str:
    return "not defined" if share is None else f"{share * 100:.{digits}f} %"


def number(value: float | int | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def short(value: float) -> str:
    """Three digits that matter, and a sign where it is below 1."""
    if value == 0:
        return "0"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:+.3f}"


def chance(p: float | None, name: str = "") -> str:
    """A p or a q, with its name before it where one is given."""
    if p is None:
        return "–"
    return (f"{name} = {p:.3f}" if p >= 0.001 else f"{name} < 0.001").removeprefix(" = ").strip()


def with_interval(row: dict, digits: int = 2) -> Markup:
    """A statistic and its 95 % interval: {value, low, high}."""
    if row["value"] is None:
        return Markup("–")
    interval = "" if row["low"] is None else f"{row['low']:.{digits}f} … {row['high']:.{digits}f}"
    return Markup('{} <span class="interval">{}</span>').format(f"{row['value']:.{digits}f}", interval)


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.replace("'", ""))


def script() -> str:
    """The explorer's modules as one script, since a file that is opened from a disk may not import others."""
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
    """JSON that can't end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HTML), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, number, short, chance, with_interval, slug)
    made.filters |= {function.__name__: function for function in filters}
    return made


def render(
    figures: Path, chapters: Mapping[str, Any], categories: Sequence[CategoryMaps], cfg: Mapping[str, Any]
) -> str:
    """The same inputs give the same bytes. Raises PicollmError where a figure is missing or damaged.

    `chapters` are the reports by name, with `seeds` where there is a spread over them; `cfg` has the config's sections
    report and corpus.
    """
    pictures, groups = embedded(figures), {}
    for entry in pictures.values():
        if entry["group"]:
            groups.setdefault(entry["group"], []).append(entry)
    c = chapters
    heads, source = c["heads"], cfg["corpus"]["source"]
    claims = every_claim(c["findings"], c["training"], c["benchmark"])
    shown, maps = explorer.sentences(categories, len(heads["heads"]), cfg["report"]["sentences"])
    code = script()
    return environment().get_template("page.html.j2").render(
        **({"seeds": None} | dict(c)),
        chapters=CHAPTERS,
        cfg=cfg,
        style=Markup((HTML / "style.css").read_text(encoding="utf-8")),
        script=Markup(code),
        script_sha256=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        explorer_json=as_json(explorer_data(c, shown)),
        maps=maps,
        headline=story.headline(c["data"], c["training"], c["mechanisms"], c["ablation"], source),
        underline=story.underline(c["training"]),
        numbers=story.five_numbers(heads, c["mechanisms"], c["ablation"], c["probes"], c["benchmark"]),
        head_map=head_map(heads, c["ablation"]),
        scoreboard=board(claims),
        lead=leads(c, claims, source),
        entries={"coreference": c["probes"]["coreference"], **c["probes"]["pairs"]},
        original=ORIGINAL_SHARES,
        pictures=pictures,
        groups=groups,
        glossary=GLOSSARY,
        letters=LETTERS,
        on_cpu=on_cpu,
    )  # fmt: skip


def explorer_data(c: Mapping[str, Any], categories: Sequence[Mapping]) -> dict:
    heads = c["heads"]
    costs = [head["delta"] for head in c["ablation"]["heads"]]
    return {
        "layers": heads["n_layers"],
        "heads_a_layer": heads["n_heads"],
        "first": costs.index(max(costs)),
        "steps": [row["step"] for row in c["emergence"]["snapshots"]],
        "thresholds": explorer.thresholds(heads),
        "facts": explorer.facts(heads, c["mechanisms"], c["ablation"], c["emergence"]),
        "categories": categories,
    }


def leads(c: Mapping[str, Any], claims: Sequence[Mapping], source: str) -> dict[str, str]:
    """The sentence that opens each chapter."""
    return {
        "explorer": "Where does each word look? Choose a sentence, then a head.",
        "data": story.data_sentence(c["data"], c["training"]),
        "training": story.training_sentence(c["training"]),
        "heads": story.heads_sentence(c["heads"]),
        "families": story.families_sentence(c["clusters"]),
        "causes": story.causes_sentence(c["ablation"]),
        "probes": story.probes_sentence(c["probes"], c["training"]),
        "claims": story.claims_sentence(claims),
        "attention": "One sentence of each category, all heads at once, and where the layers move its words.",
        "engines": story.engines_sentence(c["engine"]),
        "speed": story.speed_sentence(c["benchmark"]),
        "profile": story.profile_sentence(c["profile"]),
        "again": "Every number above is made again by one command.",
    }
