"""Signal handling: the first signal ends a training run after its step, with the state saved; a later one, at once."""

from __future__ import annotations

import signal
import threading
import time

from picollm.errors import PicollmError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a job manager's, Ctrl-C, a closed terminal
# Seconds in which further signals count as the same request: terminal, shell and job manager each send their own.
GRACE = 2.0


class Stopped(PicollmError):
    """Signals that a run ended by request; the same command resumes it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def ignore_signals(*_: object) -> None:
    """Ignores signals from now on, in a process that another one ends or that is about to exit."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interruption:
    """Context in which the first signal only sets `asked`.

    `patient`: so do all others; for one of several processes, whose parent decides when to stop waiting.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient, self.asked, self.at, self.before = patient, False, 0.0, {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self.before = {number: signal.getsignal(number) for number in SIGNALS}
            for number, handler in self.before.items():
                if handler is not signal.SIG_IGN:  # nohup's SIGHUP
                    signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: object) -> None:
        if self.asked and not self.patient and time.monotonic() - self.at > GRACE:
            self.restore()
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.at = True, time.monotonic()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        if not self.asked:  # else the process is about to exit, and repeats of the request must not end it earlier
            self.restore()
