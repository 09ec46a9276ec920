"""Signals that wait until something short is complete."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def set_on_interrupt(stop: threading.Event) -> Iterator[None]:
    """Within the block a first Ctrl-C sets an event; a second acts as it did before the block."""
    previous = signal.getsignal(signal.SIGINT)

    def set_once(*_: object) -> None:
        log.warning("saving after this step; Ctrl-C again ends at once")
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, set_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def deferred_signals(*numbers: int) -> Iterator[None]:
    """Holds back the first SIGTERM and SIGINT (or `numbers`) until the block has ended.

    A second signal of the same kind acts at once. Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous: dict[int, Any] = {}

    def hold(number: int, frame) -> None:
        pending.append(number)
        signal.signal(number, previous[number])

    for number in numbers or (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)
