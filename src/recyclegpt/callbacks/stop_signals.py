"""Signals that ask a run to stop: noted on arrival, acted on between two steps.

Nothing is saved inside a handler, which may run in the middle of an optimizer step. Lightning's own handler for SIGTERM
communicates with other processes inside it, and its handler for SLURM saves inside it
(https://github.com/Lightning-AI/pytorch-lightning/issues/21406); both are replaced while training runs.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what `kill`, preemption and the end of a time limit send; what SLURM can send before a time limit; what a
terminal sends that is closed."""


class StopSignals:
    """Remembers that one of `SIGNALS` came.

    A second Ctrl-C raises KeyboardInterrupt at once; any other second signal changes nothing.

    Attributes:
        received: the first signal that came; None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on. Only the main thread can; elsewhere nothing is changed.

        A SIGHUP that is ignored, as under nohup, stays ignored.
        """
        self.received = None
        if threading.current_thread() is threading.main_thread() and not self._before:
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        if self.received.name == "SIGHUP":
            _leave_terminal()
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        print(f"\n{self.received.name}: saving after this step, then stopping{again}", file=sys.stderr, flush=True)


def _leave_terminal() -> None:
    """A terminal that is gone refuses every line, which would end the run before it has saved."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
