"""SIGTERM and Ctrl-C end a training run after its step, with the state saved; a second one ends it at once."""

from __future__ import annotations

import signal
import threading

from picollm.errors import PicollmError


class Stopped(PicollmError):
    """Ended by request; the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again

    def __init__(self, step: int, steps: int, saved: bool) -> None:
        kept = "the checkpoint is saved, run again to go on" if saved else "nothing was saved"
        self.step, self.steps = step, steps
        super().__init__(f"stopped by a signal after step {step} of {steps}; {kept}")


class Interruption:
    """While it is entered, the first signal only sets `asked`."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked, self.before = False, {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self.before = {number: signal.signal(number, self.note) for number in self.SIGNALS}
        return self

    def note(self, number: int, frame: object) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        self.restore()
