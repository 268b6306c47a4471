"""Progress of long computations: a bar on a terminal, otherwise a line every half minute, or a run's status file.

    for batch in progress(batches, desc="accuracy gate", unit=" batches"): ...

Inside a rule of a run, the job sets the path of its status file (`STATUS`); the run's own process draws its contents
(picollm.console.display), so that parallel jobs share one display.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

STATUS = "PICOLLM_STATUS"  # path without suffix; each process of the job appends its number and .json
PICTURE = "PICOLLM_PICTURE"  # set for the jobs of a run that draws its display on a terminal
DRAW_SECONDS, LINE_SECONDS = 0.5, 30.0
FACTS = ("n", "total", "elapsed", "initial", "rate", "unit", "prefix")  # what describes a bar, by tqdm's names


def status_file() -> Path | None:
    """Path of this process's status file; None outside a run."""
    base = os.environ.get(STATUS)
    return Path(f"{base}.{os.getpid()}.json") if base else None


_said: dict = {}


def report(**facts: object) -> None:
    """Merges facts into this process's status file; does nothing outside a run."""
    path = status_file()
    if path is None:
        return
    _said.update(facts)
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps(_said))
        temporary.replace(path)
    except OSError:  # a full disk or a missing folder: the display must not stop a run
        pass


class progress(tqdm):  # noqa: N801  used like a function
    """tqdm with the same arguments that chooses its output: a terminal, lines, or a status file."""

    def __init__(self, *arguments, disable: bool = False, **options) -> None:
        self.drawn = not status_file() and sys.stderr.isatty()
        self.line_at = time.monotonic()
        if not self.drawn:
            options["mininterval"] = DRAW_SECONDS if status_file() else LINE_SECONDS
        super().__init__(*arguments, disable=disable, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.drawn:
            super().display(msg, pos)
            return
        facts = {name: self.format_dict[name] for name in FACTS}
        facts["postfix"] = self.postfix or ""
        if status_file():
            report(bar=facts)
        elif time.monotonic() - self.line_at >= LINE_SECONDS:
            self.line_at = time.monotonic()
            print(f"{facts['prefix'] or 'progress'}: {describe(facts)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.drawn:
            super().close()
            return
        self.disable = True  # tqdm's close would write an empty line
        report(bar=None)


def rate_of(bar: dict) -> float:
    """Returns iterations per second: tqdm's moving average, which forgets a slow beginning such as a compilation."""
    return bar.get("rate") or ((bar["n"] - bar["initial"]) / bar["elapsed"] if bar["elapsed"] else 0.0)


def describe(bar: dict) -> str:
    """Formats a bar's facts as text: share, count, rate, time left, and the loop's own postfix."""
    n, total, units = bar["n"], bar["total"], bar["unit"].strip()
    rate = rate_of(bar)
    parts = [f"{n / total:.0%}, {n:,.0f} of {total:,.0f} {units}" if total else f"{n:,.0f} {units}"]
    if rate:
        parts.append(f"{rate:.2g}/s" if rate >= 1 else f"{1 / rate:.2g} s each")
        if total:
            parts.append(f"{duration((total - n) / rate)} left")
    return ", ".join([*parts, *filter(None, [bar["postfix"]])])


def duration(seconds: float) -> str:
    """Formats seconds as 4 s, 2 min 10 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
