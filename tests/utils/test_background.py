"""Tasks beside the main thread: order, errors, the end of the block."""

import threading

import pytest

from ivid2vid_jax.utils.background import Background


def test_tasks_run_in_order_and_a_newer_one_replaces_one_that_waits():
    done, begun, release = [], threading.Event(), threading.Event()

    def first():
        begun.set()
        release.wait(10)
        done.append("first")

    with Background() as background:
        background.start("export", first)
        assert begun.wait(10)
        background.start("push", lambda: done.append("old push"))
        background.start("push", lambda: done.append("push"))
        assert done == []
        release.set()
    assert done == ["first", "push"]


def test_an_error_is_raised_once_in_the_main_thread_and_drops_later_tasks():
    done, release = [], threading.Event()

    def fail():
        release.wait(10)
        raise OSError("disk full")

    with pytest.raises(KeyError), Background() as background:
        background.start("export", fail)
        background.start("push", lambda: done.append("push"))
        release.set()
        with pytest.raises(OSError, match="disk full"):
            background.wait()
        background.start("again", lambda: done.append("again"))
        raise KeyError  # the block's own error is not replaced
    assert done == ["again"]
    with pytest.raises(OSError, match="disk full"), Background() as background:
        background.start("export", fail)


def test_ctrl_c_does_not_wait():
    release = threading.Event()
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.start("export", lambda: release.wait(60))
        raise KeyboardInterrupt
    assert background.is_running
    release.set()
