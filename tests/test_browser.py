"""Tests the report in a real browser: from a file, offline, by mouse and keyboard; it shows what the files contain."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from page_inputs import chapters, draw, page_of
from synthetic import random_causal

from picollm.attention.maps import from_arrays

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup-browser")
if not CHROMIUM:
    pytest.skip("no Chromium on this machine: make setup-browser", allow_module_level=True)

WORDS = ["<|endoftext|>", "The", " cat", " </script>", " sat", " on", " the", " mat", "."]


def categories():
    ids = [list(range(9)), [0, 1, 2, 3, 4], [0, 2, 4, 6]]
    maps = [random_causal((2, 2, len(row), len(row)), seed=len(row), scale=2.0) for row in ids]
    tokens = [[WORDS[i] for i in row] for row in ids]
    return [
        from_arrays(maps[:2], ids[:2], tokens[:2], category="simple"),
        from_arrays(maps[2:], ids[2:], tokens[2:], category="negation"),
    ]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    figures = draw(folder / "figures")
    file = folder / "final.html"
    file.write_text(page_of(figures, categories=categories()), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Chromium has no sandbox as root; the page is our own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@contextmanager
def opened(browser, file):
    """Opens the page from its file without a network; any error or request fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    context.set_default_timeout(120_000)  # ms: the machine may be busy
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    page.goto(file.as_uri())
    yield page
    assert faults == []
    context.close()


@pytest.fixture
def view(browser, page_file):
    with opened(browser, page_file) as page:
        yield page


def test_the_first_screen_is_whole_without_scrolling(view):
    for width, height in ((1280, 800), (390, 844)):
        view.set_viewport_size({"width": width, "height": height})
        for inside in ("h1", "svg.map", ".number", ".scores"):
            box = view.locator(inside).last.bounding_box()
            assert box["y"] + box["height"] <= height, (inside, width, box)
            assert box["x"] >= 0 and box["x"] + box["width"] <= width + 1, (inside, width, box)
    assert view.evaluate("document.documentElement.scrollWidth") <= 391, "a phone scrolls one way alone"


SMALL = """() => [...document.querySelectorAll('main *, header *')].map(e => {
    const own = [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !e.getClientRects().length || /^(TITLE|OPTION)$/i.test(e.tagName)) return null;
    const svg = e.ownerSVGElement, box = svg && svg.getAttribute('viewBox');
    const zoom = box ? svg.getBoundingClientRect().width / Number(box.split(' ')[2]) : 1;
    return [e.textContent.trim().slice(0, 30), zoom * parseFloat(getComputedStyle(e).fontSize)];
}).filter(row => row && row[1] < 8.99)"""


@pytest.mark.parametrize("width", [1280, 390])
def test_no_text_is_below_nine_pixels(view, width):
    view.set_viewport_size({"width": width, "height": 844})
    view.evaluate("document.querySelectorAll('details').forEach(row => { row.open = true; })")
    assert view.evaluate(SMALL) == []


def test_what_is_missing_breaks_nothing_else(browser, page_file):
    found = {name: report for name, report in chapters().items() if name not in ("heads", "benchmark")}
    absent = {name: f"reports/{name}.json is missing: run `snakemake`" for name in ("heads", "benchmark")}
    file = page_file.with_name("part.html")
    file.write_text(page_of(page_file.parent / "figures/manifest.json", found, categories(), absent=absent), "utf-8")
    with opened(browser, file) as page:
        for chapter in ("explorer", "heads", "causes", "speed", "overview"):
            assert page.locator(f"#{chapter} .absent").first.is_visible(), chapter
        assert page.locator("#families .lead").is_visible() and not page.locator("#families .absent").count()
        page.click("#theme")
        assert page.locator("#theme").inner_text() == "Light"


def test_what_a_head_s_page_folds_stays_as_it_was_left(view):
    folds = view.locator("#facts details")
    assert folds.count() == 3 and not folds.first.get_attribute("open")
    folds.first.locator("summary").click()
    view.locator("#tiles button").first.click()
    assert folds.first.get_attribute("open") is not None and folds.nth(1).get_attribute("open") is None


def test_a_click_on_the_map_opens_the_head(view):
    view.locator("svg.map a").nth(1).click()
    view.wait_for_function("() => document.querySelector('#facts h3').textContent.startsWith('L0H1')")
    assert view.locator("#tiles [aria-pressed=true]").get_attribute("title").startswith("L0H1")
    assert "L1H2 in the original" in view.locator("#facts").inner_text()


def pixels(view, selector):
    return np.array(view.evaluate("""selector => {
        const canvas = document.querySelector(selector);
        return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data);
    }""", selector)).reshape(-1, 4)  # fmt: skip


def test_the_map_shows_the_weights(view):
    view.evaluate("location.hash = '#head=L1H0&category=0&sentence=0&view=raw&scale=linear'")
    view.wait_for_function("() => document.querySelector('#facts h3').textContent.startsWith('L1H0')")
    maps = categories()[0].maps[0].reshape(4, 9, 9)
    low, high = np.array([252, 252, 250]), np.array([12, 38, 72])
    found = pixels(view, "#heat canvas").reshape(9, 9, 4)
    for query in range(9):
        for key in range(9):
            if key > query:
                assert found[query, key, 3] == 0, "the future is empty"
                continue
            expected = low + (high - low) * maps[2, query, key]
            assert np.abs(found[query, key, :3] - expected).max() <= 2, (query, key)


def address(view, *parts):
    """Waits until the address has these parts."""
    view.wait_for_function("parts => parts.every(part => location.hash.includes(part))", arg=list(parts))


def test_the_views_differ_and_are_what_they_say(view):
    maps = categories()[0].maps[0].reshape(4, 9, 9)[0]
    view.evaluate("location.hash = '#head=L0H0&category=0&sentence=0&view=no-sink&scale=linear'")
    view.wait_for_function("() => document.querySelector('#view [value=no-sink]').ariaPressed === 'true'")
    found = pixels(view, "#heat canvas").reshape(9, 9, 4)
    expected = maps[5, 3] / (1 - maps[5, 0])
    assert np.abs(found[5, 3, :3] - (np.array([252, 252, 250]) + np.array([-240, -214, -178]) * expected)).max() <= 4
    assert found[5, 0, :3].tolist() == [252, 252, 250]
    view.click("#view [value=relative]")
    relative = pixels(view, "#heat canvas").reshape(9, 9, 4)
    above = maps[6] * 7
    most, least = int(np.argmax(above[:7])), int(np.argmin(above[:7]))
    assert relative[6, most, 0] > relative[6, most, 2] and relative[6, least, 2] > relative[6, least, 0]
    address(view, "scale=linear", "view=relative")
    assert view.locator("#scale [value=log]").is_disabled(), "multiples of chance have one scale"
    view.click("#view [value=raw]")
    for scale in ("sqrt", "log", "linear"):
        view.click(f"#scale [value={scale}]")
        assert view.locator(f"#scale [value={scale}]").get_attribute("aria-pressed") == "true"


def test_keys_choose_heads_sentences_and_words(view):
    view.locator("#tiles [aria-pressed=true]").focus()
    name = lambda: view.locator("#facts h3").first.inner_text().split()[0]  # noqa: E731
    assert name() == "L1H1", "the head that costs most is shown first"
    view.keyboard.press("ArrowLeft")
    assert name() == "L0H1"
    view.keyboard.press("ArrowUp")
    assert name() == "L0H0"
    view.keyboard.press("]")
    assert view.locator("#sentence").input_value() == "1" and view.locator("#category").input_value() == "0"
    view.keyboard.press("]")
    assert view.locator("#category").input_value() == "1", "after the last sentence comes the next category"
    view.keyboard.press("[")
    assert view.locator("#category").input_value() == "0" and view.locator("#sentence").input_value() == "1"
    view.locator("#arcs text").nth(2).click()
    address(view, "word=2")
    assert view.locator("#arcs text.on").text_content() == "cat"
    view.keyboard.press("Escape")
    view.wait_for_function("() => !location.hash.includes('word')")


def test_a_chosen_word_keeps_the_focus(view):
    word = view.locator("#arcs text[role=button]").nth(2)
    word.focus()
    before = view.evaluate("scrollY")
    view.keyboard.press("Space")
    assert view.evaluate("document.activeElement.dataset.word") == "2" and view.evaluate("scrollY") == before
    assert view.locator("#arcs text[data-word='2']").get_attribute("aria-pressed") == "true"


def test_keys_do_nothing_while_the_explorer_is_out_of_sight(view):
    view.evaluate("document.querySelector('#claims').scrollIntoView()")
    view.keyboard.press("]")
    assert view.locator("#sentence").input_value() == "0"


def test_arcs_follow_the_view(view):
    view.evaluate("location.hash = '#head=L0H0&category=0&sentence=0&view=raw'")
    view.wait_for_function("() => document.querySelector('#view [value=raw]').ariaPressed === 'true'")
    raw = view.locator("#arcs path").evaluate_all("paths => paths.map(path => path.getAttribute('d')).join()")
    view.click("#view [value=no-sink]")
    assert view.locator("#arcs path").evaluate_all("paths => paths.map(path => path.getAttribute('d')).join()") != raw


@pytest.mark.parametrize("hash", ["#head=L99H99", "#head=l0h0", "#head=L0H0&view=toString&scale=__proto__", "#%"])
def test_an_odd_hash_changes_nothing_that_it_does_not_name(view, hash):
    view.evaluate(f"location.hash = {hash!r}")
    view.wait_for_timeout(50)
    name = "L0H0" if "L0H0" in hash else "L1H1"
    assert view.locator("#facts h3").first.inner_text().startswith(name)
    assert view.locator("#view [aria-pressed=true]").count() == view.locator("#scale [aria-pressed=true]").count() == 1


def test_a_link_to_a_head_keeps_the_sentence_and_works_twice(view):
    view.evaluate("location.hash = '#head=L0H0&category=0&sentence=1&pin=L1H0'")
    view.wait_for_function("() => document.querySelector('#sentence').value === '1'")
    for _ in range(2):
        view.evaluate("scrollTo(0, 0)")
        view.evaluate("document.querySelector('a[href=\"#head=L0H1\"]').dispatchEvent(new MouseEvent('click', "
                      "{bubbles: true, cancelable: true}))")  # fmt: skip
        view.wait_for_function("() => scrollY > 0")
    assert view.locator("#sentence").input_value() == "1" and view.locator("#facts h3").count() == 2


def test_two_heads_side_by_side(view):
    view.click("#pin")
    view.locator("#tiles button").first.click()
    titles = view.locator("#facts h3").all_inner_texts()
    assert [title.split()[0] for title in titles] == ["L0H0", "L1H1"] and view.locator("#heat2 canvas").is_visible()
    address(view, "pin=L1H1", "head=L0H0")
    view.reload()
    assert len(view.locator("#facts h3").all()) == 2, "the address has all of the state"
    view.click("#pin")
    assert not view.locator("#heat2").is_visible()


def test_text_is_text(view):
    assert "</script>" in view.locator("#arcs").inner_text()
    assert view.locator("#sentence option").first.inner_text().startswith("1. ")
    values = view.locator("#facts dd").all_inner_texts()
    head = chapters()["ablation"]["heads"][3]
    assert any(f"+{head['delta']:.4f}" in value for value in values)


def test_dark_and_light(view):
    background = lambda: view.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    assert background() == "rgb(252, 252, 250)"
    view.click("#theme")
    assert background() == "rgb(20, 21, 23)" and view.locator("#theme").inner_text() == "Light"
    dark = pixels(view, "#heat canvas")
    view.click("#theme")
    assert not np.array_equal(dark, pixels(view, "#heat canvas"))


def test_paper_is_light_and_has_what_is_folded(view):
    view.emulate_media(media="print", color_scheme="dark")
    assert view.evaluate("getComputedStyle(document.body).color") == "rgb(27, 27, 26)"
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert view.locator("figure img").first.evaluate("image => getComputedStyle(image).filter") == "none"
    folded = "document.querySelectorAll('details:not([open])').length"
    before = view.evaluate(folded)
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 == view.evaluate(folded)
    view.evaluate("dispatchEvent(new Event('afterprint'))")
    assert view.evaluate(folded) == before


def test_the_maps_follow_the_systems_theme(view):
    light = pixels(view, "#heat canvas")
    view.emulate_media(color_scheme="dark")
    view.wait_for_function("() => document.querySelector('#theme').textContent === 'Light'")
    assert not np.array_equal(light, pixels(view, "#heat canvas"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_a_reader(view, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    view.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    found = axe.Axe().run(view).response["violations"]
    serious = {
        row["id"]: [node["html"][:120] for node in row["nodes"]][:3]
        for row in found
        if row["impact"] in ("serious", "critical")
    }
    assert serious == {}


def test_without_a_script_the_chapters_are_there(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(Path(page_file).as_uri())
    assert page.locator("noscript").first.is_visible() and page.locator("#causes .lead").is_visible()
    assert not page.locator("#explorer-view").is_visible()
    context.close()
