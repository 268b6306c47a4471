"""What a person sees of a run: on a terminal one picture that is redrawn, elsewhere a line now and then.

    display = Display(root, logger)      # in the Snakefile
    display.begin(jobs, seconds, source) # when the jobs are known

Snakemake's events say which job begins, ends and fails. How far a job is, what it found and what it warns of stand in
its status files (picollm.progress). Snakemake's own stream of messages is replaced; its log file keeps all of them.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from picollm.pipeline import slurm
from picollm.progress import LINE_SECONDS, PICTURE, STATUS, describe, duration

FOLDER = Path(".snakemake/picollm/status")
PRINTED = "printed"  # under a picture: what jobs and libraries print, which would go through it
# After a rule's own line:
SAID_ALREADY = ("CalledProcessError in file", "At least one job did not complete", "Exiting because a job execution")
REDRAWS, BAR_WIDTH = 4, 24  # a second; columns


@dataclass
class Row:
    """A rule of the run: `jobs` of it, of which some are running and some done."""

    rule: str
    jobs: int = 0
    running: int = 0
    done: int = 0
    failed: bool = False
    began: float | None = None
    seconds: float | None = None
    spoke: float = 0.0
    printed: int = 0  # bytes that were in PRINTED when it began
    status: dict = field(default_factory=dict)


class Display(logging.Handler):
    """Handles the log records of Snakemake's main process. `remote`: its jobs run elsewhere, and print there."""

    def __init__(self, root: Path, logger: logging.Logger, remote: bool = False) -> None:
        """Takes the place of the logger's own stream handler."""
        super().__init__(logging.INFO)
        self.folder, self.remote = root / FOLDER, remote
        self.rows: dict[str, Row] = {}
        self.rule_of: dict[int, str] = {}
        self.estimates: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.top, self.source, self.began = "", "", time.monotonic()
        self.terminal: IO[str] | None = None
        self.taken: list[tuple[int, int]] = []
        self.console = Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.stopped = threading.Event()
        self.on_done: Callable[[str], None] = lambda rule: None
        for handler in list(logger.handlers):
            if handler.name == "DefaultStreamHandler":
                logger.removeHandler(handler)
        logger.addHandler(self)

    def begin(self, jobs: Iterable[tuple[str, float]], seconds: Mapping[str, float], source: str) -> None:
        """jobs: rule, and the share of the machine that it takes, in order. seconds and source: of `estimate`."""
        self.estimates, self.source = dict(seconds), source
        for rule, share in jobs:
            self.rows.setdefault(rule, Row(rule)).jobs += 1
            self.shares[rule] = share
        self.top = f"picollm: {self.headline()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ[STATUS] = str(self.folder)
        for left in self.folder.iterdir():
            left.unlink()
        if self.remote or self.console.is_terminal:
            os.environ[PICTURE] = "1"
        if self.console.is_terminal:
            self.take_streams()
            self.console = Console(file=self.terminal, highlight=False, force_terminal=True)
            self.live = Live(console=self.console, get_renderable=self.picture, refresh_per_second=REDRAWS)
            self.live.start()
        else:
            self.say(self.top)
            threading.Thread(target=self.speak_now_and_then, daemon=True).start()
        atexit.register(self.stop)

    def take_streams(self) -> None:
        """Only the picture is drawn on the terminal; what this process and its jobs print goes to a file."""
        self.terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        file = os.open(self.folder / PRINTED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            self.taken.append((stream, os.dup(stream)))
            os.dup2(file, stream)
        os.close(file)

    def stop(self) -> None:
        """The last picture stays."""
        self.stopped.set()
        if self.live:
            self.live.stop()
            self.live = None
        for stream, before in self.taken:
            os.dup2(before, stream)
            os.close(before)
        self.taken = []

    # Snakemake's events

    def emit(self, record: Any) -> None:
        """Of Snakemake's records, which have fields of their own."""
        event = str(getattr(record, "event", None) or "")
        if event == "job_info":
            self.rule_of[record.jobid] = record.rule_name
            self.start(record.rule_name)
        elif event == "job_finished":
            self.finish(self.rule_of.get(record.job_id, ""))
        elif event == "job_error":
            words = slurm.words(record.rule_msg, record.log or []) if self.remote else None
            self.fail(record.rule_name, words)
        elif self.is_for_a_person(record, event):
            self.say(record.getMessage().strip())

    def is_for_a_person(self, record: logging.LogRecord, event: str) -> bool:
        """A rule's failure has its own line already, and that the run failed is seen."""
        text = str(record.msg or "")
        if any(known in text for known in SAID_ALREADY):
            return False
        warned = record.levelno >= logging.WARNING or text.startswith("Nothing to be done")
        return event == "error" or (not event and warned)

    def start(self, rule: str) -> None:
        row = self.rows.setdefault(rule, Row(rule, jobs=1))
        row.running, row.failed = row.running + 1, False
        now = time.monotonic()
        row.began, row.spoke = row.began or now, now
        row.printed = self.printed_size()

    def finish(self, rule: str) -> None:
        row = self.rows.get(rule)
        if row is None:
            return
        self.read(row)
        row.running, row.done = row.running - 1, row.done + 1
        row.seconds = time.monotonic() - (row.began or self.began)
        if row.done == row.jobs:
            self.on_done(rule)
            if not self.live:
                found = row.status.get("found")
                self.say(f"{rule}: done in {duration(row.seconds)}{f': {found}' if found else ''}")

    def fail(self, rule: str, words: str | None = None) -> None:
        """words: of a cluster that ended the job."""
        row = self.rows.setdefault(rule, Row(rule, jobs=1))
        self.read(row)
        if row.failed:
            return
        row.failed, row.running = True, row.running - 1
        if words or self.remote and not row.status.get("said"):
            self.say(f"{rule}: FAILED: {words or 'its process ended without a word: see logs/slurm'}")
        elif self.live and not row.status.get("said"):
            self.say(f"{rule}: FAILED: {self.last_words(row)}")

    # What jobs say

    def read(self, row: Row) -> None:
        """Their status, and the warnings and errors that are new where they don't print them here."""
        status: dict = {}
        files = sorted(self.folder.glob(f"{row.rule}.*.json"), key=lambda file: file.stat().st_mtime)
        for file in files:
            try:
                found = json.loads(file.read_text())
            except (OSError, ValueError):  # just being replaced
                continue
            status |= {"said": status.get("said", []) + found.pop("said", [])} | found
        if not status:
            return
        known = len(row.status.get("said", []))
        row.status = status
        if self.live or self.remote:
            for _, text in status.get("said", [])[known:]:
                self.say(f"{row.rule}: {text}")

    def last_words(self, row: Row) -> str:
        """The last line printed since it began, where its process ended before it put an error into words."""
        data = (self.folder / PRINTED).read_bytes()[row.printed :].decode(errors="replace")
        lines = [line for line in data.splitlines() if line.strip()]
        return lines[-1] if lines else "its process ended without a word"

    def printed_size(self) -> int:
        path = self.folder / PRINTED
        return path.stat().st_size if path.exists() else 0

    # The picture

    def headline(self) -> str:
        jobs = [row for row in self.rows.values() if row.done < row.jobs and row.rule != "all"]
        what = f"{len(jobs)} rule{'s' * (len(jobs) != 1)} to run"
        if not self.estimates:
            return f"{what}; {self.source}" if self.source else what
        unknown = [row.rule for row in jobs if row.rule not in self.estimates]
        without = f" without {', '.join(unknown)}" if unknown else ""
        return f"{what}, about {duration(self.left())}{without} (from {self.source})"

    def left(self) -> float:
        """Seconds, by the estimates, less what the running rules have done of theirs."""
        total = 0.0
        for row in self.rows.values():
            if row.done < row.jobs and row.rule in self.estimates:
                spent = time.monotonic() - row.began if row.began else 0.0
                total += max(0.0, self.remaining(row, spent)) * self.shares.get(row.rule, 1.0)
        return total

    def remaining(self, row: Row, spent: float) -> float:
        bar = row.status.get("bar")
        if bar and bar["total"] and bar["n"] > bar["initial"]:
            return bar["elapsed"] / (bar["n"] - bar["initial"]) * (bar["total"] - bar["n"])
        return self.estimates[row.rule] - spent

    def picture(self) -> Group:
        table = Table.grid(padding=(0, 1))
        table.add_column(overflow="ellipsis", width=1)
        table.add_column(overflow="ellipsis", no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True, justify="right")
        table.add_column(overflow="ellipsis", no_wrap=True)
        for row in self.rows.values():
            if row.rule != "all":
                table.add_row(*self.cells(row))
        spent = duration(time.monotonic() - self.began)
        rest = f", about {duration(self.left())} left" if self.estimates and not self.stopped.is_set() else ""
        return Group(Text(self.top, style="bold"), table, Text(f"{spent} so far{rest}", style="dim"))

    def cells(self, row: Row) -> tuple:
        spent = time.monotonic() - row.began if row.began else 0.0
        if row.failed:
            stopped = all(level != "ERROR" for level, _ in row.status.get("said") or [("ERROR", "")])
            word, colour = ("stopped", "yellow") if stopped else ("failed", "red")
            return Text("x", f"bold {colour}"), Text(row.rule, colour), "", Text(word, colour)
        if row.done == row.jobs:
            return Text("+", "green"), row.rule, duration(row.seconds or 0.0), Text(row.status.get("found", ""), "cyan")
        if row.running:
            self.read(row)
            return Text(">", "bold yellow"), Text(row.rule, "bold"), duration(spent), self.bar(row, spent)
        expected = self.estimates.get(row.rule)
        return " ", Text(row.rule, "dim"), "", Text(f"about {duration(expected)}" if expected else "", "dim")

    def bar(self, row: Row, spent: float) -> Table | Text:
        bar = row.status.get("bar")
        if not bar or not bar["total"]:
            expected = self.estimates.get(row.rule)
            return Text(f"of about {duration(expected)}" if expected else "", "dim")
        grid = Table.grid(padding=(0, 1))
        title = bar["prefix"] if bar["prefix"] and bar["prefix"] != row.rule else ""
        words = ": ".join(filter(None, [title, describe(bar)]))
        grid.add_row(ProgressBar(bar["total"], bar["n"], width=BAR_WIDTH), Text(words, overflow="ellipsis"))
        return grid

    # Lines

    def speak_now_and_then(self) -> None:
        """Without a terminal: a line every half minute from each rule that is at work."""
        while not self.stopped.wait(1.0):
            now = time.monotonic()
            for row in list(self.rows.values()):
                if row.running and now - row.spoke >= LINE_SECONDS:
                    row.spoke = now
                    self.say(self.line(row, now - (row.began or now)))

    def line(self, row: Row, spent: float) -> str:
        self.read(row)
        bar, expected = row.status.get("bar"), self.estimates.get(row.rule)
        if bar:
            title = f" {bar['prefix']}" if bar["prefix"] and bar["prefix"] != row.rule else ""
            return f"{row.rule}:{title} {describe(bar)}"
        return f"{row.rule}: at work for {duration(spent)}" + (f" of about {duration(expected)}" if expected else "")

    def say(self, text: str) -> None:
        if self.live:
            self.console.print(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)
