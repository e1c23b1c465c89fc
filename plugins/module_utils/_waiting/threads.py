# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run blocking vendor calls with a deadline.

They run in daemon threads: a module must end after its deadline, and at exit Python waits for the threads of
a ThreadPoolExecutor (CPython 3.9 to 3.13), but not for daemon threads.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import queue
import threading
import typing as t
from collections.abc import Callable, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

# The error of a driver that gives up at the deadline is more precise than TimedOut, so it gets this much extra time.
LAST_WORD_SECONDS = 0.5

_T = t.TypeVar("_T")
_I = t.TypeVar("_I")


def begin(call: Callable[[], _T], done: Callable[[_T | None, BaseException | None], None]) -> None:
    """Run ``call`` in a new daemon thread. That thread calls ``done`` with the return value or the exception."""

    def work() -> None:
        try:
            value = call()
        except BaseException as exc:  # pass on every exception: the caller would wait for ever
            done(None, exc)
        else:
            done(value, None)

    threading.Thread(target=work, daemon=True).start()


def in_time(what: str, call: Callable[[], _T], deadline: Deadline) -> _T:
    """Run ``call`` with a deadline. Return its value or raise its exception.

    :raises TimedOut: the time is up; the call continues in its thread until the process ends.
    """
    box: queue.SimpleQueue[tuple[t.Any, BaseException | None]] = queue.SimpleQueue()
    begin(call, lambda value, error: box.put((value, error)))
    try:
        value, error = box.get(timeout=deadline.left() + LAST_WORD_SECONDS)
    except queue.Empty:
        raise TimedOut(f"Gave up waiting for {what} after {deadline.seconds:g} seconds") from None
    if error is not None:
        raise error
    return t.cast("_T", value)


def each(items: Sequence[_I], call: Callable[[_I], _T], *, at_once: int) -> list[_T]:
    """Return the results of ``call`` for each of ``items`` in order, with at most ``at_once`` parallel calls.

    The first exception is raised when all calls have ended.
    """
    left = collections.deque(enumerate(items))
    results: dict[int, _T] = {}
    failed: list[BaseException] = []

    def work() -> None:
        while left:
            try:
                number, item = left.popleft()
            except IndexError:
                return
            try:
                results[number] = call(item)
            except BaseException as exc:
                failed.append(exc)

    threads = [threading.Thread(target=work, daemon=True) for _each in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [results[number] for number in range(len(items))]


class Crew:
    """A pool of daemon threads that run calls in the order of submission, so that not every call needs a new thread."""

    def __init__(self, size: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._missing = size

    def do(self, call: Callable[[], None]) -> None:
        """Submit ``call``, which must not raise. Does not block, and is thread-safe."""
        self._calls.put(call)
        if self._missing > 0:  # two parallel callers may start one thread too many, which is harmless
            self._missing -= 1
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._calls.get()()
