"""Work that runs beside the main thread: writing and uploading files while training goes on."""

import threading
from collections.abc import Callable
from types import TracebackType


class Background:
    """Runs tasks one after the other in a thread; a context manager.

    A task that still waits is replaced by a newer one of the same name. The error of a task is
    raised in the main thread by the next `start` or `wait`; later tasks are then dropped. At the
    end of the block unfinished tasks are waited for, except after Ctrl-C: the thread is a daemon,
    so a kill ends it too. What a task writes must therefore be atomic.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Callable[[], object]] = {}  # name -> task that waits
        self.error: BaseException | None = None
        self.is_running = False
        self.changed = threading.Condition()

    def start(self, name: str, task: Callable[[], object]) -> None:
        """Queues a task and returns at once. Raises the error of an earlier one."""
        self.raise_error()
        with self.changed:
            self.tasks.pop(name, None)
            self.tasks[name] = task
            if not self.is_running:
                self.is_running = True
                threading.Thread(target=self.run, name="background", daemon=True).start()

    def run(self) -> None:
        """The thread: runs tasks until none waits or one fails."""
        while True:
            with self.changed:
                if not self.tasks or self.error:
                    self.tasks.clear()
                    self.is_running = False
                    self.changed.notify_all()
                    return
                task = self.tasks.pop(next(iter(self.tasks)))
            try:
                task()
            except BaseException as error:  # raised in the main thread
                self.error = error

    def wait(self) -> None:
        """Blocks until all tasks are done. Raises the error of one that failed."""
        self.finish()
        self.raise_error()

    def finish(self) -> None:
        """Blocks until all tasks are done or one has failed."""
        with self.changed:
            self.changed.wait_for(lambda: not self.is_running)

    def raise_error(self) -> None:
        """Raises the error of a task that failed, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):
            self.finish()
