"""A report that is missing, damaged, of another format or out of date affects only its chapters of the page."""

import json
import re

import pytest
import workspace
import yaml
from page_inputs import CFG, chapters, draw, page_of, sentences

from picollm.attention import clusters, heads
from picollm.data import packing
from picollm.engine import build
from picollm.files import write_json
from picollm.mechanisms import ablation, emergence, mechanisms, probes
from picollm.report import findings
from picollm.report.page import CHAPTERS, OVERVIEW
from picollm.report.sources import FORMATS, PATHS, read_sources

MODULES = {
    "data": packing, "engine": build, "heads": heads, "clusters": clusters, "mechanisms": mechanisms,
    "emergence": emergence, "ablation": ablation, "probes": probes, "findings": findings,
}  # fmt: skip


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("figures"))


@pytest.fixture
def files(tmp_path):
    """Writes the reports as files; returns their paths by name."""
    paths = {name: str(tmp_path / f"{name}.json") for name in PATHS}
    for name, path in paths.items():
        write_json(path, chapters()[name])
    return paths


def section(page, name):
    return re.search(rf'<section[^>]* id="{name}">.*?</section>', page, re.S)[0]


def test_the_formats_are_those_that_are_written():
    assert {name: module.FORMAT for name, module in MODULES.items()} == FORMATS
    deps = yaml.safe_load((workspace.ROOT / "dvc.yaml").read_text())["stages"]["final_report"]["deps"]
    assert {path.removesuffix("/manifest.json") for path in PATHS.values()} <= {*deps}


@pytest.mark.parametrize("name", PATHS)
def test_what_is_missing_costs_its_chapters_and_no_more(files, figures, name, tmp_path):
    (tmp_path / f"{name}.json").unlink()
    sources = read_sources(files, ["nowhere.npz"], str(figures))
    why = f"{files[name]} is missing: run `snakemake --cores all -- {files[name]}`"
    assert sources.absent[name] == why and set(sources.absent) == {name, "maps"}
    page = page_of(figures, sources.reports, absent={name: why})
    hurt = {chapter.id for chapter in CHAPTERS if name in chapter.needs}
    assert hurt or name in OVERVIEW
    for chapter in CHAPTERS:
        text = section(page, chapter.id)
        assert (why in text) == (chapter.id in hurt), chapter.id
        assert ('class="lead"' in text) == (chapter.id not in hurt), chapter.id
    overview = section(page, "overview")
    assert (why in overview) == (name in OVERVIEW) and "<h1>" in overview
    assert ('<svg class="map"' in overview) == (name not in ("heads", "ablation"))


def test_another_format_and_a_damaged_file_are_reported(files, figures, tmp_path):
    report = chapters()["clusters"]
    write_json(files["clusters"], report | {"format": 99})
    (tmp_path / "profile.json").write_text('{"tool": ')
    write_json(files["benchmark"], chapters()["benchmark"] | {"format": "a report without a format may have one"})
    sources = read_sources(files, ["nowhere.npz"], "no/manifest.json")
    assert set(sources.absent) == {"clusters", "profile", "maps", "figures"}
    assert sources.absent["clusters"] == (
        f"{files['clusters']} has format 99, but this page reads format 3: run `snakemake --cores all --force -- "
        f"{files['clusters']}`"
    )
    assert "is not valid JSON" in sources.absent["profile"] and "nowhere.npz is missing" in sources.absent["maps"]
    page = page_of(figures, sources.reports, sources.categories, absent=sources.absent)
    assert "has format 99" in section(page, "families") and "No figures: no/manifest.json" in section(page, "causes")
    assert "nowhere.npz" in section(page, "explorer") and json.loads(data_of(page))["categories"] == []


def test_what_is_out_of_date_is_shown_and_said(figures):
    why = "reports/clusters.json is out of date: run `snakemake`"
    page = page_of(figures, old={"clusters": why})
    assert why in section(page, "families") and 'class="lead"' in section(page, "families")
    assert page.count(why) == 1
    assert page_of(figures) == page_of(figures, cfg=CFG) and 'class="absent"' not in page_of(figures)


def test_with_nothing_but_the_text_the_page_stands(figures):
    page = page_of(figures, {}, [], absent={name: f"{name} is missing" for name in (*PATHS, "maps", "figures")})
    assert "This page is incomplete" in page and page.count('class="lead"') == 1
    assert 'id="again"' in page and "dvc repro" in page


def data_of(page):
    return re.search(r'id="explorer-data">(.*?)</script>', page, re.S)[1]


def test_a_category_without_sentences_has_none_in_the_explorer(figures):
    first, second = sentences()
    page = page_of(figures, categories=[first], cfg=CFG | {"report": CFG["report"] | {"sentences": 0}})
    assert [len(row["sentences"]) for row in json.loads(data_of(page))["categories"]] == [0]
    assert "application/octet-stream" not in page
