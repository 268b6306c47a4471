"""User text in figures: drawn as written, with a fallback font if ours lacks a character, or as a code point."""

import base64
import os
import re
import subprocess
import sys
from xml.dom import minidom

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from synthetic import random_causal

from picollm.report import sentence_figures as attention
from picollm.report.compare import draw_curves
from picollm.report.gallery import Gallery
from picollm.report.style import legible, plt


def drawn(svg: bytes) -> str:
    """Returns the characters of a picture's text, from matplotlib's names of its glyphs (in DejaVu's order)."""
    charmap = {glyph: chr(code) for code, glyph in get_font(findfont("DejaVu Sans")).get_charmap().items()}
    return "".join(charmap[int(glyph, 16)] for glyph in re.findall(rb'<use xlink:href="#DejaVuSans-(\w+)"', svg))


def tick_labels(figure) -> list[str]:
    figure.canvas.draw()
    return [label.get_text() for axis in figure.axes for label in axis.get_xticklabels()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        (["In", " $$", " holds"], ["In", "$$", "holds"]),
        (["$", "5", " or", " $", "6", ".", " x_i^2"], ["$", "5", "or", "$", "6", ".", "x_i^2"]),
        (["\\frac", " {", "}", " %", " \\$"], ["\\frac", "{", "}", "%", "\\$"]),
        (["Привет", " \N{GRINNING FACE}"], ["Привет", "\N{GRINNING FACE}"]),  # which DejaVu has
        (["a\tb", "\x00", "\x0c", "\uffff"], ["a⟨0009⟩b", "⟨0000⟩", "·", "⟨FFFF⟩"]),
        (["\U0010ff00"], ["⟨10FF00⟩"]),  # for private use: no font has it
    ],
)
def test_tokens_are_drawn_as_they_are_written(tmp_path, tokens, labels):
    weights = random_causal((1, 1, len(tokens) + 1, len(tokens) + 1), seed=1)
    figure = attention.flow_figure(weights, ["<|endoftext|>", *tokens])
    assert tick_labels(figure) == [*labels, "⟨eot⟩", *labels], "the edges, and beside them the rollout"
    gallery = Gallery(tmp_path / "manifest.json")
    gallery.add("flow.svg", figure, "Flow")
    svg = (tmp_path / "flow.svg").read_bytes()
    assert "".join(labels).replace(" ", "") in drawn(svg)
    assert minidom.parseString(svg).documentElement.tagName == "svg"
    heat = attention.heat_maps(weights, "".join(tokens), [["L0H0"]])
    assert heat.get_suptitle() == legible("".join(tokens).strip())
    gallery.add("maps.png", heat, "Maps")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["main", "cost-$5-$6"])
def test_the_name_of_a_branch_is_drawn_as_it_is_written(name):
    uri = draw_curves({name: {"loss": [(1, 2.0), (2, 1.0)]}})
    assert f"training,{legible(name)}" in drawn(base64.b64decode(uri.partition(",")[2])).replace(" ", "")


@pytest.mark.filterwarnings("error")
def test_what_no_usual_font_has_is_drawn_with_another_or_named(tmp_path, monkeypatch):
    """With any fonts on this machine, each character is either in one that the figure uses, or replaced."""
    monkeypatch.setitem(plt.rcParams, "font.family", list(plt.rcParams["font.family"]))
    text = "中文 한국어 日本語 हिन्दी 𓀀"
    shown = legible(text)
    fonts = [get_font(findfont(family)).get_charmap() for family in plt.rcParams["font.family"]]
    assert all(any(ord(char) in charmap for charmap in fonts) for char in shown)
    left = re.sub("⟨([0-9A-F]{4,})⟩", lambda code: chr(int(code[1], 16)), shown)
    assert left == text
    figure = attention.flow_figure(random_causal((1, 1, 9, 9), seed=1), ["x", *text[:8]])
    figure.savefig(tmp_path / "flow.svg")


@pytest.mark.heavy
def test_a_font_that_has_the_character_is_fallen_back_on(tmp_path):
    """Uses a font that matplotlib's list of fonts does not contain yet, with one glyph: 中."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "middle"])
    builder.setupCharacterMap({ord("中"): "middle"})
    pen = TTGlyphPen(None)
    for move, corner in zip((pen.moveTo, pen.lineTo, pen.lineTo), ((0, 0), (900, 0), (0, 900)), strict=True):
        move(corner)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "middle": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "middle": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2(), builder.setupPost()
    builder.setupNameTable({"familyName": "A font of ours", "styleName": "Regular", "psName": "Ours"})
    folder = tmp_path / "fonts"
    folder.mkdir()
    builder.save(folder / "ours.ttf")
    code = (
        "import sys, warnings; warnings.simplefilter('error');"
        "from picollm.report.style import legible, plt, save;"
        "figure = plt.figure(); figure.text(0, 0, legible('中 文 a')); save(figure, sys.argv[1], '.svg');"
        "print(ascii(legible('中 文 a')), plt.rcParams['font.family'])"
    )
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", code, str(tmp_path / "a.svg")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "A font of ours" in done.stdout and r"\u4e2d" in done.stdout, done.stdout
    assert (tmp_path / "a.svg").read_bytes().count(b'<use xlink:href="#Ours-1"') == 1


def test_a_long_heading_ends_where_the_line_does():
    short, long, wide = "a" * 110, "a" * 111, "\N{GRINNING FACE}" * 60
    assert attention.heading(short) == short
    assert attention.heading(long) == "a" * 109 + "…"
    assert attention.heading(wide) == wide[:54] + "…"


def test_the_maps_write_no_formula():
    figure = attention.heat_maps(random_causal((1, 1, 5, 5), seed=1), "a b", [["L0H0"]])
    figure.canvas.draw()
    assert [text.get_text() for text in figure.findobj(Text) if "$" in text.get_text()] == []
