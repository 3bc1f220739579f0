"""Rows worked on by every processor, their outcomes in the order of the rows.

Processes, not threads: a template is Python. Only a bounded number of rows is under way, so that memory does not grow
with the data.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from finetune_trainer.contract.dataset import ConversationSource
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.read import Row
from finetune_trainer.data.rows import Outcome, RowWork
from finetune_trainer.errors import TrainerError

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 32
CHARACTERS_AT_ONCE = 1 << 20  # a few rows of many million characters are not kept waiting together
PORTIONS_UNDER_WAY = 3  # for each process
# Without a CPU limit a container sees all processors of its node; the prepare pod asks for 4 GiB of memory.
MAX_PROCESSES = 16
# Below this, starting processes takes longer than they save.
PARALLEL_FROM_BYTES = 16 << 20


class Workers:
    """Does `RowWork`, on one processor or on many."""

    def __init__(self, work: RowWork, pool: ProcessPoolExecutor | None, num_processes: int) -> None:
        self._work = work
        self._pool = pool
        self._num_processes = num_processes

    def outcomes(self, rows: Iterable[Row], dataset: ConversationSource) -> Iterator[Outcome]:
        """Yield what becomes of each row, in the order of the rows.

        Raises:
            TrainerError: as `RowWork.outcome`; ERROR when a process was killed.
        """
        if self._pool is None:
            yield from (self._work.outcome(row, dataset) for row in rows)
            return
        under_way: deque[Future[list[Outcome]]] = deque()
        try:
            for portion in _portions(rows):
                under_way.append(self._pool.submit(_outcomes, portion, dataset))
                if len(under_way) >= PORTIONS_UNDER_WAY * self._num_processes:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        except BrokenProcessPool as error:
            raise TrainerError(
                Reason.ERROR,
                "a process that tokenises was killed, most likely for want of memory: give prepare more memory",
            ) from error


@contextmanager
def workers(work: RowWork, num_bytes: int, num_processes: int) -> Iterator[Workers]:
    """Start the workers that data of `num_bytes` is worth, at most `num_processes` and `MAX_PROCESSES`."""
    if num_processes == 1 or num_bytes < PARALLEL_FROM_BYTES:
        yield Workers(work, None, 1)
        return
    num_processes = min(num_processes, MAX_PROCESSES)
    logger.info("tokenising in %d processes", num_processes)
    # NB: not fork: the libraries of this process have threads, and their locks would be copied as they are.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin, initargs=(work,))
    try:
        yield Workers(work, pool, num_processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _portions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    portion: list[Row] = []
    num_characters = 0
    for row in rows:
        portion.append(row)
        num_characters += len(row.value) if isinstance(row.value, str) else 0
        if len(portion) == ROWS_AT_ONCE or num_characters >= CHARACTERS_AT_ONCE:
            yield portion
            portion, num_characters = [], 0
    if portion:
        yield portion


# --- in a process of its own ------------------------------------------------------------------------------------------

_work: RowWork | None = None


def _begin(work: RowWork) -> None:
    global _work
    _work = work
    # A Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _outcomes(rows: list[Row], dataset: ConversationSource) -> list[Outcome]:
    assert _work is not None
    return [_work.outcome(row, dataset) for row in rows]
