"""Measures the report in a browser: its size, the time to first paint, and the time to switch head or sentence.

    python benchmarks/page.py                             # reports/final.html; under a minute on two idle cores
    python benchmarks/page.py docs/gallery/final.html --repeats 30

The page is opened from its file in a headless Chromium (`make setup-browser`), each time in a new context, so that
nothing is cached. First paint: the browser's own `first-contentful-paint`. A switch: from a click on another head, or
the choice of another sentence (all heads' small maps), until the frame that shows it is done; each switch goes to a new
head or sentence, in order, so that maps decoded before don't help. Also reported is the CPU time of the page's main
thread in a switch, which other work on the machine does not lengthen. Median, minimum and maximum.

Budgets: a page of 8 MB, a first paint within 1 s, a switch within 50 ms.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import CDPSession, Page, sync_playwright

BUDGETS = {"first paint": 1000.0, "switch of head": 50.0, "switch of sentence": 50.0}
VIEWPORT = {"width": 1280, "height": 800}
# Two frames after the action: the first is requested before it is painted, the second afterwards.
TIMED = """async action => {
    const act = {
        head: () => {
            const tiles = [...document.querySelectorAll('#tiles button')];
            const now = tiles.findIndex(tile => tile.getAttribute('aria-pressed') === 'true');
            tiles[(now + 1) % tiles.length].click();
        },
        sentence: () => document.dispatchEvent(new KeyboardEvent('keydown', {key: ']'})),
    }[action];
    const frame = () => new Promise(requestAnimationFrame);
    await frame();
    const start = performance.now();
    act();
    await frame();
    await frame();
    return performance.now() - start;
}"""
PAINTED = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"


def chromium() -> str:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium on this machine: make setup-browser")
    return browser


def busy(session: CDPSession) -> float:
    """Milliseconds of CPU time used so far by the page's main thread."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return 1e3 * next(row["value"] for row in metrics if row["name"] == "TaskDuration")


def measured(page: Page, session: CDPSession, switches: int) -> dict[str, list[float]]:
    page.wait_for_function(PAINTED)
    times = {"first paint": [page.evaluate(PAINTED)]}
    page.locator("#tiles").scroll_into_view_if_needed()
    for action in ("head", "sentence"):
        name, before = f"switch of {action}", busy(session)
        times[name] = [page.evaluate(TIMED, action) for _ in range(switches)]
        times[f"{name}, busy"] = [(busy(session) - before) / switches]
    return times


def result_line(name: str, times: Sequence[float]) -> str:
    middle, budget = statistics.median(times), BUDGETS.get(name)
    verdict = "" if budget is None else f": {'within' if middle <= budget else 'OVER'} {budget:,.0f} ms"
    return f"{name:25} {middle:7.1f} ms [{min(times):.1f}, {max(times):.1f}], n = {len(times)}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, default=Path("reports/final.html"))
    parser.add_argument("--repeats", type=int, default=9, help="number of times the page is opened (%(default)s)")
    parser.add_argument("--switches", type=int, default=12, help="switches of each kind per opening (%(default)s)")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=as_root)
        for _ in range(arguments.repeats):
            context = browser.new_context(viewport=VIEWPORT, offline=True)
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(arguments.page.resolve().as_uri())
            for name, more in measured(page, session, arguments.switches).items():
                times.setdefault(name, []).extend(more)
            context.close()
        version = browser.version
        browser.close()
    size = arguments.page.stat().st_size / 1e6
    print(f"{arguments.page}: {size:.2f} MB: {'within' if size <= 8 else 'OVER'} 8 MB; Chromium {version}")
    print(*(result_line(name, values) for name, values in times.items()), sep="\n")


if __name__ == "__main__":
    main()
