"""Pool of decoding processes that survives a crash in one of them."""

import functools
import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotDoneError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from tgan_fast.preparation import worker
from tgan_fast.preparation.worker import Job, Outcome

# Number of jobs per process that may have begun before the oldest of them is done.
_AHEAD = 4
# Seconds between two checks of the stop event.
_PATIENCE = 0.1


def done_in_order(
    jobs: Iterable[Job], workers: int, stop: threading.Event, progress: Callable[[Job], object]
) -> Iterator[tuple[Job, list[Outcome] | None]]:
    """Yield jobs with their outcomes, in order; the outcomes of a job are None if its process crashed.

    A crash of one process, for instance in a decoder, ends all of them. Unfinished jobs then run again, with a separate
    process for each video, which shows the video that crashes it.

    Args:
        jobs: Jobs; at most `4 · workers` of them have begun and have not been yielded.
        workers: Number of processes.
        stop: Event that aborts jobs and ends the iteration.
        progress: Function that is called when a job is done, possibly in another thread.
    """
    jobs, again = iter(jobs), deque()
    while True:
        with _process_pool(workers) as (pool, interrupt):
            begun = deque()
            try:
                for job, outcomes in _run_until_crash(pool, jobs, begun, _AHEAD * workers, stop, progress):
                    yield job, outcomes
                if stop.is_set():
                    interrupt.set()
                return
            except BrokenProcessPool:
                again.extend(begun)
        while again:
            job, future = again.popleft()
            outcomes = _finished_outcomes(future)
            if outcomes is not None:
                yield job, outcomes
            else:
                yield from ((part, _run_alone(part, progress)) for part in job.split())


def _run_until_crash(pool, jobs, begun, most, stop, progress):
    while not stop.is_set():
        while len(begun) < most and (job := next(jobs, None)) is not None:
            begun.append((job, Future()))
            begun[-1] = job, pool.submit(worker.run_job, job)
            begun[-1][1].add_done_callback(functools.partial(_report_done, progress, job))
        if not begun:
            return
        try:
            outcomes = begun[0][1].result(timeout=_PATIENCE)
        except NotDoneError:
            continue
        yield begun.popleft()[0], outcomes


def _report_done(progress, job, future):
    if not future.cancelled() and future.exception() is None:
        progress(job)


def _finished_outcomes(future):
    """Return the outcomes of a job that was done before the processes died, else None."""
    return future.result() if future.done() and future.exception() is None else None


def _run_alone(job, progress):
    with _process_pool(1) as (pool, _):
        try:
            return pool.submit(worker.run_job, job).result()
        except BrokenProcessPool:
            return None
        finally:
            progress(job)


@contextmanager
def _process_pool(count):
    # A fork of a process with threads can hang, and a fresh Python takes seconds to import PyTorch, so all processes
    # are forks of one fresh Python.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    interrupt = context.Event()
    with ProcessPoolExecutor(count, context, worker.initialize, (interrupt,)) as pool:
        try:
            yield pool, interrupt
        except BaseException:
            interrupt.set()
            raise
        finally:
            # A process that is still starting uses resources that would be freed, so the pool waits for it.
            pool.shutdown(cancel_futures=True)
