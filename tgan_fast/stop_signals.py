"""Ending of processes: on Ctrl-C, SIGTERM or a closed terminal, and together with the process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT, SIGTERM or SIGHUP sets; a second one has its usual effect.

    A SIGHUP that the process ignores, as under nohup, stays ignored.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def restore(*_):
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(*_):
        stop.set()
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


def end_with_parent() -> None:
    """Make this process, which `multiprocessing` started, exit as soon as its parent has ended for any reason."""
    threading.Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(parent):
    parent.join()
    os._exit(1)
