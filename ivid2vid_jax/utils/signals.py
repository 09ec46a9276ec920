"""Ctrl-C and SIGTERM: neither is lost, and what is short or precious is completed first."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, NoReturn

from ivid2vid_jax.utils.atomic import remove_temporary_paths

log = logging.getLogger(__name__)

INTERRUPTED = 130  # exit code after Ctrl-C
SAME_PRESS = 0.3  # seconds; launchers may deliver one Ctrl-C twice
NOTICE_AFTER = 1.0  # seconds without a reaction to Ctrl-C


class Interrupt(NamedTuple):
    """How far the first Ctrl-C of this process has come."""

    seen: threading.Event  # a Python handler has run
    raised: threading.Event  # as KeyboardInterrupt
    sent_again: threading.Event  # by this module, because Python dropped the exception


# Signals are sent to the process, so their state is the process's.
INTERRUPT = Interrupt(threading.Event(), threading.Event(), threading.Event())


@contextmanager
def reliable_interrupts() -> Iterator[None]:
    """Within the block no Ctrl-C is lost, and a second one ends the process at once.

    The first raises KeyboardInterrupt in the main thread. Python drops an exception that is raised
    in a destructor or in a callback of the garbage collector, where JAX spends much of its time
    while it traces: then it is raised again. A second Ctrl-C acts also while native code, such as
    the compiler, runs: `signal.set_wakeup_fd` tells a thread. After the first, all this stays in
    force while the process ends.

    It does nothing outside the main thread, and where SIGINT is ignored or has a handler.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    for event in INTERRUPT:
        event.clear()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=watch_signals, args=(reader,), daemon=True).start()
    unraisable_hook = sys.unraisablehook
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, raise_interrupt)
    sys.unraisablehook = lambda event: raise_again(event, unraisable_hook)
    try:
        yield
    finally:
        if not INTERRUPT.seen.is_set():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.set_wakeup_fd(previous_writer)
            sys.unraisablehook = unraisable_hook
            os.close(writer)


def raise_interrupt(*_: object) -> None:
    """Handles the first SIGINT; the thread of `watch_signals` handles the second."""
    INTERRUPT.seen.set()
    if not INTERRUPT.raised.is_set():
        INTERRUPT.raised.set()
        raise KeyboardInterrupt


def raise_again(event: Any, hook: Any) -> None:
    """A hook for exceptions that Python drops: raises a KeyboardInterrupt again, a little later."""
    if issubclass(event.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, send_again).start()
    else:
        hook(event)


def send_again() -> None:
    """Sends SIGINT to this process; it is not counted as a second Ctrl-C."""
    INTERRUPT.raised.clear()
    INTERRUPT.sent_again.set()
    os.kill(os.getpid(), signal.SIGINT)


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was raised and lost; called after each step of a task."""
    if INTERRUPT.raised.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def watch_signals(pipe: int) -> None:
    """Reads the numbers of signals from a pipe until it closes; ends the process at the second."""
    first = None
    while numbers := os.read(pipe, 64):
        if signal.SIGINT not in numbers:
            continue
        if INTERRUPT.sent_again.is_set():
            INTERRUPT.sent_again.clear()
            continue
        if first is None:
            first = time.monotonic()
            notice = threading.Timer(NOTICE_AFTER, print_notice)
            notice.daemon = True
            notice.start()
        elif time.monotonic() - first > SAME_PRESS:
            end_process("ended at once")
    os.close(pipe)


def print_notice() -> None:
    """Says what happens if the main thread is still within native code."""
    if not INTERRUPT.seen.is_set():
        print(
            "\nends after the current step; Ctrl-C again ends at once", file=sys.stderr, flush=True
        )


def end_process(message: str) -> NoReturn:
    """Ends the process and its workers now; what is half written is removed."""
    for child in multiprocessing.active_children():
        child.kill()
    remove_temporary_paths()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        os.write(2, f"{message}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def set_on_interrupt(stop: threading.Event) -> Iterator[None]:
    """Within the block a first Ctrl-C sets an event; a second acts as it did before the block."""
    raise_if_interrupted()
    previous = signal.getsignal(signal.SIGINT)

    def set_once(*_: object) -> None:
        INTERRUPT.seen.set()
        log.warning(
            "saving once the running steps are done; Ctrl-C again ends at once, without saving"
        )
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, set_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def deferred_signals(*numbers: int, notice: str = "") -> Iterator[None]:
    """Holds back the first SIGTERM and SIGINT (or `numbers`) until the block has ended.

    A second signal of the same kind acts at once. Outside the main thread it does nothing.

    Args:
        numbers: the signals.
        notice: printed when one is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous: dict[int, Any] = {}

    def hold(number: int, frame) -> None:
        if number == signal.SIGINT:
            INTERRUPT.seen.set()
        if notice:
            print(f"\n{notice}", file=sys.stderr, flush=True)
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
            if callable(previous[number]):
                previous[number](number, None)  # sent again, it would count twice
            else:
                signal.raise_signal(number)


@contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Within the block SIGINT waits; in threads and processes that are started there for ever.

    So a worker that Ctrl-C reaches while it starts prints no traceback. It leaves Ctrl-C to its
    parent, or calls `end_silently_on_interrupt`.
    """
    start_resource_tracker()
    with deferred_signals(signal.SIGINT):  # another thread may receive it
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def start_resource_tracker() -> None:
    """Starts the process by which multiprocessing removes what killed processes leave behind.

    Here it does so without a warning. The first worker would start it, which unblocks SIGINT.
    """
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if warnings is not None:
            os.environ["PYTHONWARNINGS"] = warnings


def end_silently_on_interrupt() -> None:
    """In a worker: Ctrl-C, also one that waits, ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
