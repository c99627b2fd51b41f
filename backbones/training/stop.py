"""SIGINT (Ctrl-C) and SIGTERM: a run saves a checkpoint before it ends, of the same step in all processes.

with Stop() as stop:                  before the first step a signal ends the run at once
    stop.waits = True                 from here on it is noted, and the loop asks for it
    if number := stop.agreed(...):    the largest number that any process has noted, or 0
"""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

_ONE_KEY = 1.0  # seconds in which torchrun may hand a Ctrl-C to a process that the terminal has sent it to, too


class Interrupted(KeyboardInterrupt):
    """A signal ended the run. `number` is the signal."""

    def __init__(self, number: int, said: str) -> None:
        super().__init__(said)
        self.number = number


class Stop:
    """What the signals have asked for while the block runs. In another thread than the first one none is heard."""

    def __init__(self) -> None:
        self.waits = False
        self.number, self._since = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup, or a job in the background
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal. A second Ctrl-C ends at once; a second SIGTERM, which schedulers send, does not."""
        now = time.monotonic()
        again = number == signal.SIGINT and self.number and now - self._since > (_ONE_KEY if _launched() else 0)
        if again or not self.waits:
            raise Interrupted(number, "stopped at once; --resume goes on from the last checkpoint, if there is one")
        if not self.number:
            self.number, self._since = number, now

    def agreed(self, accelerator: Any) -> int:
        """The signal that any process has noted, or 0. All processes must call it."""
        if accelerator.num_processes == 1:
            return self.number
        return int(accelerator.gather(torch.tensor([self.number], device=accelerator.device)).max())


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def undisturbed(worker: int) -> None:
    """For a worker that reads pictures: signals are for the process that trains, which ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
