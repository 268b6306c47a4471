"""Shows a run's progress: on a terminal one picture that is redrawn, elsewhere a line from time to time.

    display = Display(root, logger)      # in the Snakefile
    display.begin(jobs, seconds, source) # when the jobs are known

Snakemake's events say which jobs start, finish and fail. A job's status files (picollm.progress) hold its progress, its
main result and its warnings. Snakemake's own messages are not printed; its log file keeps all of them.
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

from picollm.cluster import slurm
from picollm.progress import LINE_SECONDS, PICTURE, STATUS, describe, duration, rate_of

FOLDER = Path(".snakemake/picollm/status")
PRINTED = "printed"  # receives the output of jobs and libraries, which would otherwise break the picture
# Snakemake's messages that repeat what a rule's own line has said:
SAID_ALREADY = ("CalledProcessError in file", "At least one job did not complete", "Exiting because a job execution")
REDRAWS, BAR_WIDTH = 4, 24  # per second; in columns


@dataclass
class Row:
    """A rule of the run: its number of `jobs`, and how many are running and done."""

    rule: str
    jobs: int = 0
    running: int = 0
    done: int = 0
    failed: bool = False
    began: float | None = None
    seconds: float | None = None
    spoke: float = 0.0
    printed: int = 0  # size of PRINTED in bytes when the rule began
    status: dict = field(default_factory=dict)


class Display(logging.Handler):
    """Handles the log records of Snakemake's main process. `remote`: its jobs run, and print, on other machines."""

    def __init__(self, root: Path, logger: logging.Logger, remote: bool = False) -> None:
        """Replaces the logger's own stream handler."""
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
        """Starts the display. `jobs`: rules in order, each with its share of the machine; the rest as in `estimate`."""
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
        """Redirects the output of this process and its jobs to a file, so that only the picture is on the terminal."""
        self.terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        file = os.open(self.folder / PRINTED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            self.taken.append((stream, os.dup(stream)))
            os.dup2(file, stream)
        os.close(file)

    def stop(self) -> None:
        """Stops redrawing, leaves the last picture in place and restores the streams."""
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
        """Handles one of Snakemake's log records, which have their own fields."""
        event = str(getattr(record, "event", None) or "")
        if event == "job_info":
            self.rule_of[record.jobid] = record.rule_name
            self.start(record.rule_name)
        elif event == "job_finished":
            self.finish(self.rule_of.get(record.job_id, ""))
        elif event == "job_error":
            reason = slurm.reason_ended(record.rule_msg, record.log or []) if self.remote else None
            self.fail(record.rule_name, reason)
        elif self.is_for_a_person(record, event):
            self.say(record.getMessage().strip())

    def is_for_a_person(self, record: logging.LogRecord, event: str) -> bool:
        """Filters Snakemake's messages: a failed rule already has its own line, and the run's failure is visible."""
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
                result = row.status.get("result")
                self.say(f"{rule}: done in {duration(row.seconds)}{f': {result}' if result else ''}")

    def fail(self, rule: str, reason: str | None = None) -> None:
        """Marks a rule as failed. `reason`: given by the cluster that ended the job."""
        row = self.rows.setdefault(rule, Row(rule, jobs=1))
        self.read(row)
        if row.failed:
            return
        row.failed, row.running = True, row.running - 1
        if reason or self.remote and not row.status.get("said"):
            self.say(f"{rule}: FAILED: {reason or 'its process ended without a message: see logs/slurm'}")
        elif self.live and not row.status.get("said"):
            self.say(f"{rule}: FAILED: {self.last_words(row)}")

    # What jobs say

    def read(self, row: Row) -> None:
        """Reads the status of a rule's jobs, and prints new warnings and errors if the jobs don't print them here."""
        status: dict = {}
        files = sorted(self.folder.glob(f"{row.rule}.*.json"), key=lambda file: file.stat().st_mtime)
        for file in files:
            try:
                facts = json.loads(file.read_text())
            except (OSError, ValueError):  # being replaced right now
                continue
            status |= {"said": status.get("said", []) + facts.pop("said", [])} | facts
        if not status:
            return
        known = len(row.status.get("said", []))
        row.status = status
        if self.live or self.remote:
            for _, text in status.get("said", [])[known:]:
                self.say(f"{row.rule}: {text}")

    def last_words(self, row: Row) -> str:
        """Returns the last line printed since the rule began, for a process that ended without reporting an error."""
        data = (self.folder / PRINTED).read_bytes()[row.printed :].decode(errors="replace")
        lines = [line for line in data.splitlines() if line.strip()]
        return lines[-1] if lines else "its process ended without a message"

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
        """Returns the estimated seconds left, less what the running rules have already done."""
        total = 0.0
        for row in self.rows.values():
            if row.done < row.jobs and row.rule in self.estimates:
                spent = time.monotonic() - row.began if row.began else 0.0
                total += max(0.0, self.remaining(row, spent)) * self.shares.get(row.rule, 1.0)
        return total

    def remaining(self, row: Row, spent: float) -> float:
        bar = row.status.get("bar")
        if bar and bar["total"] and (rate := rate_of(bar)):
            return (bar["total"] - bar["n"]) / rate
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
            return (
                Text("+", "green"),
                row.rule,
                duration(row.seconds or 0.0),
                Text(row.status.get("result", ""), "cyan"),
            )
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
        """Prints a line every half minute for each running rule, if there is no terminal."""
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
        return f"{row.rule}: running for {duration(spent)}" + (f" of about {duration(expected)}" if expected else "")

    def say(self, text: str) -> None:
        if self.live:
            self.console.print(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)
