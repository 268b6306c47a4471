"""The report's page: its sentences, that it needs nothing from outside, and which sentences fit into the explorer."""

import base64
import hashlib
import html as html_entities
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from jinja2 import UndefinedError
from page_inputs import CFG, chapters, draw, page_of, sentences
from synthetic import random_causal

from picollm.attention.labels import LABELS
from picollm.attention.maps import from_arrays
from picollm.errors import PicollmError
from picollm.profiling.profile import NEEDS
from picollm.report import explorer
from picollm.report.gallery import embedded
from picollm.report.head_map import head_map
from picollm.report.page import LIMIT


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("figures"))


@pytest.mark.parametrize("fault", ["bit", "lost"])
def test_a_damaged_figure_is_refused_by_name(figures, tmp_path, fault):
    for path in figures.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / "grid.svg"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data) if fault == "bit" else target.unlink()
    with pytest.raises(
        PicollmError, match=r"grid\.svg is (damaged|missing).*run `snakemake --cores all -R draw_figures`"
    ):
        page_of(tmp_path / "manifest.json")


def test_the_page_is_the_same_each_time_and_needs_nothing_from_outside(figures):
    page = page_of(figures)
    assert page == page_of(figures)
    assert "default-src 'none'" in page and not re.search(r"<(link|iframe|object|embed)\b", page, re.IGNORECASE)
    html = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    targets = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)|url\(([^)]*)\)|@import\s+(\S+)", html)
    targets = ["".join(groups) for groups in targets]
    assert len(targets) >= 17 + 13 and all(
        target.startswith(("data:image/", "data:text/csv", "#")) for target in targets
    )
    places = {target[1:] for target in targets if target.startswith("#") and "=" not in target}
    assert places <= set(re.findall(r' id="([\w-]+)"', html))
    assert {f"head=L{h // 2}H{h % 2}" for h in range(4)} <= {target[1:] for target in targets}
    for entry in embedded(figures).values():
        assert page.count(entry["uri"]) >= 1 and (entry["csv"] is None or entry["csv"] in page)


def test_the_spread_over_seeds_stands_beside_the_shares_while_it_is_current(figures):
    labels = {label: {"mean": 0.25, "least": 0.125, "most": 0.5} for label in LABELS}
    seeds = {"seeds": [1, 2, 3], "shares": labels, "agreement": 0.5, "agreement_by_chance": 0.4, "file": "seeds.json"}
    plain = page_of(figures)
    assert "Over 3 seeds" not in plain and "seeds.json" not in plain
    shown = page_of(figures, chapters() | {"seeds": seeds | {"current": True}})
    assert "Over 3 seeds" in shown and "12.5 % … 50.0 %" in shown and "by chance 40 %" in shown
    stale = page_of(figures, chapters() | {"seeds": seeds | {"current": False}})
    assert "Over 3 seeds" not in stale and "is from another configuration or text, and is not shown" in stale


def test_a_profile_that_needs_picollms_own_model_is_one_sentence(figures):
    page = page_of(figures, chapters() | {"profile": {"needs": NEEDS}})
    assert html_entities.unescape(page).count(NEEDS) == 1 and "Median, ms" not in page


def test_the_policy_lets_the_pages_own_script_run_and_no_other(figures):
    page = page_of(figures)
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts] == [allowed]
    assert "import " not in scripts[0] and "export " not in scripts[0]
    kinds = re.findall(r'<script type="([^"]+)"', page)
    assert set(kinds) == {"application/json", "application/octet-stream"}


def test_maps_on_the_page_equal_those_in_the_files(figures):
    page, categories = page_of(figures), sentences()
    data = json.loads(re.search(r'id="explorer-data">(.*?)</script>', page, re.S)[1])
    for category, shown in zip(categories, data["categories"], strict=True):
        for number, row in enumerate(shown["sentences"]):
            assert row["tokens"] == category.tokens[number]
            text = re.search(rf'id="maps-{row["maps"]}">(.*?)</script>', page, re.S)[1]
            maps = category.maps[number].reshape(4, *category.maps[number].shape[-2:])
            assert np.abs(explorer.decoded(text, 4) - maps).max() <= 0.004
    assert data["categories"][0]["sentences"][0]["tokens"][2] == " </script>" and data["first"] == 3
    assert data["facts"][0]["original"] == "L1H1" and data["facts"][3]["kappas"]["self"] == [None, None, None]


def test_sentences_share_the_budget_and_each_category_has_its_first():
    tokens = {"simple": [10, 30, 30], "negation": [20, 20, 20], "technical": [60]}
    categories = [SimpleNamespace(ids=[[0] * n for n in lengths]) for lengths in tokens.values()]
    everything = explorer.chosen(categories, 56, most=9, budget=10**9)
    assert everything == [[0, 1, 2], [0, 1, 2], [0]] and explorer.chosen(categories, 56, most=0) == [[], [], []]
    budget = sum(explorer.size_of(n, 56) for n in (10, 20, 60, 20))
    found = explorer.chosen(categories, 56, most=9, budget=budget)
    assert found == [[0], [0, 1], [0]], "the long second of the first category is skipped"
    for n in (1, 2, 17):
        assert explorer.size_of(n, 3) == len(explorer.encoded(random_causal((3, n, n), seed=n)[None]))


def test_the_page_says_what_the_chapters_say(figures):
    html = re.sub(r"<script.*?</script>|<style.*?</style>", "", page_of(figures), flags=re.S)
    page = re.sub(r"\s+", " ", html_entities.unescape(re.sub(r"<[^>]*>", "", html)))
    words = ["Of 4 heads, 1 looks at the token itself, 2 look everywhere equally and 1 looks at the first position.",
             "not run: no NVIDIA GPU", "+25.000 %", "35,318,080", "CPU & Co <9>", "It gives not defined of the heads",
             "75.0 % of the heads keep their class", "L0H1 on complex syntax (-0.12)",
             "0.15 nats better per token than a Kneser-Ney 4-gram", "heads are <global>", "untrained models –",
             "+0.0300 +0.0150 … +0.0600", "Here: L1H1.", "its engine of 5.0 MB is built, and the graph it was",
             "compared: its ONNX graph in ONNX Runtime", "tensorrt-rtx, compute capability 8.9", "NNCF is not install",
             "GPU 1.500, copies 0.010 and 0.250", "8,192 validation tokens", "(p = 0.250)",
             "can't be tested here: too few words", "Did not hold: 1", "article and noun", "9 articles",
             "loses most without head L1H1"]  # fmt: skip
    assert [word for word in words if word not in page] == []


def test_text_is_escaped(figures):
    found, evil = chapters(), "<script>alert('1')</script>"
    found["benchmark"]["backends"]["tensorrt-fp16"]["status"] = found["profile"]["tool"]["reason"] = evil
    found["clusters"]["clusters"][0]["heads"] = found["heads"]["rule"] = [evil]
    found["heads"]["heads"][0]["seen"] = found["heads"]["heads"][0]["looks_at"][0]["token"] = evil
    page = page_of(figures, found, cfg=CFG | {"report": CFG["report"] | {"title": evil}})
    assert "<script>alert" not in page and page.count("&lt;script&gt;") >= 6
    assert "<summary>Simple &lt;b&gt;</summary>" in page and "$$" in page


def test_what_a_chapter_lacks_is_an_error_not_a_gap(figures):
    found = chapters()
    del found["clusters"]["distance"]
    with pytest.raises(UndefinedError, match="distance"):
        page_of(figures, found)


@pytest.mark.parametrize(("layers", "heads", "shown"), [(2, 2, 500), (24, 16, None)])
def test_500_sentences_of_a_small_and_a_large_model_keep_the_page_below_8_mb(figures, layers, heads, shown):
    n = 12
    maps = random_causal((layers, heads, n, n), seed=1)
    words = [f"w{i}" for i in range(n)]
    many = [from_arrays([maps] * 500, [range(n)] * 500, [words] * 500, category="simple")]
    cfg = CFG | {"report": CFG["report"] | {"sentences": 500}}
    text = page_of(figures, chapters(layers, heads), [*many, sentences(layers, heads)[1]], cfg)
    found = json.loads(re.search(r'id="explorer-data">(.*?)</script>', text, re.S)[1])
    lengths = [len(row["sentences"]) for row in found["categories"]]
    assert len(text.encode()) <= LIMIT and lengths[1] == 2 and lengths[0] == (shown or lengths[0]) > 1
    assert len(found["facts"]) == layers * heads and text.count("<circle") >= layers * heads
    room = LIMIT - len(text.encode())
    assert shown or room < 2_500_000, "the rule leaves out what would not fit, and not much more"


@pytest.mark.parametrize(("layers", "heads"), [(2, 2), (24, 16), (48, 4), (2, 32)])
def test_the_map_of_heads_fits_its_place(layers, heads):
    found = head_map(chapters(layers, heads)["heads"], chapters(layers, heads)["ablation"])
    assert len(found["cells"]) == layers * heads and found["width"] <= 620 and found["height"] <= 460
    for cell in found["cells"]:
        assert 0 < cell["width"] and 0 < cell["height"] and cell["x"] + cell["width"] <= found["width"]
