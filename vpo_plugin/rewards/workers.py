"""Processes that each run one function on items, one at a time, in their main thread, and may be ended at any moment.

They run untrusted code, which may set signals, start processes, exit, crash or never return. Such a failure ends only
its own process, with everything that it started, and becomes the outcome of the current item. Items travel in chunks,
so short items cost little. A process notes its current item in shared memory: the time of an item counts from its own
start, and the rest of an interrupted chunk runs elsewhere. (The pools of the standard library, loky and pebble end only
the process itself, count a chunk as one item, or forbid processes to start others.)
"""

import asyncio
import collections
import ctypes
import faulthandler
import importlib
import mmap
import os
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from vpo_plugin.rewards.trace import place

CHUNK_SECONDS, CHUNK_ITEMS = 0.1, 256
FLUSH_SECONDS = 0.01  # outcomes are handed over this often
GROW_SECONDS = 0.3  # items that wait this long get more processes
TICK_SECONDS = 0.05
QUEUED_BYTES = 1 << 16  # a socket takes as much without blocking, even if its process is busy
BLAMELESS_DEATHS = 3
LATE = 1000  # threads of calls that never returned
PROGRESS = struct.Struct("qd")  # the item that a process is at, -1 for none, and when it began
TRACE_SIGNAL = signal.SIGRTMAX

# The pool's path comes after the process's own: a library there may have a folder with names of the standard library
# (vLLM imports cv2, which has a `typing`).
BEGIN = """
import os, sys
own = [folder for folder in sys.path if folder]
sys.path[:] = own + [folder for folder in {path!r} if folder not in own]
try:
    from {module} import work
except BaseException as error:
    os.write({descriptors[2]}, f"{{type(error).__name__}}: {{error}}".encode())
    raise
work(*{descriptors!r})
"""


class WorkerError(RuntimeError):
    """An item whose process ended or was killed; the message says how."""


class StartError(RuntimeError):
    """Processes that cannot start; the message says why."""


class Workers:
    """A pool of such processes, started on demand.

    Args:
        prepare: `package.module:function`; a process calls it once with `argument`, and calls the result on each item.
        processes: maximum number.
        seconds: an item that takes longer is a `WorkerError`.
        memory: bytes that a process may use; beyond them Python raises MemoryError. None: no limit.
    """

    def __init__(
        self,
        prepare: str,
        argument: Any,
        *,
        processes: int,
        seconds: float,
        memory: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._start = (prepare, argument, memory)
        self._environment = {**os.environ, **(environment or {})}
        self._processes, self._seconds = processes, seconds
        self._waiting: collections.deque[_Item] = collections.deque()
        self._workers: list[_Worker] = []
        self._mean: float | None = None  # seconds of an item
        self._grown = 0.0
        self._blameless = 0
        self._closed = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)
        self._thread.start()

    def submit(self, item: Any, read: Callable[[Any], Any]) -> "Future[Any]":
        """What `read` makes of the outcome of the function on this item.

        The outcome is a WorkerError if the item's process ended, and a StartError if processes cannot start.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("These workers are closed.")
            self._waiting.append(_Item(item, read, future))
            alone = len(self._waiting) == 1
        if alone:  # where others wait, the pool's thread is about to take them, or no process is free
            self._poke()
        return future

    def close(self) -> None:
        """End all processes; items without an outcome are cancelled."""
        with self._lock:
            self._closed = True
        self._poke()
        self._thread.join()

    def _poke(self) -> None:
        with suppress(BlockingIOError):
            self._wake.send(b"!")

    # The rest runs in the pool's own thread. Processes are its children, so that they die with it (PR_SET_PDEATHSIG).

    def _run(self) -> None:
        try:
            while not self._closed:
                busy = any(worker.sent or not worker.ready for worker in self._workers)
                for key, _ in self._selector.select(TICK_SECONDS if busy or self._waiting else None):
                    if isinstance(key.data, _Worker):
                        self._receive(key.data)
                    else:
                        key.fileobj.recv(4096)  # type: ignore[union-attr]
                self._end_late()
                self._hand_out()
                self._grow()
        finally:
            for worker in self._workers:
                worker.end()
            with self._lock:
                left, self._closed = [*self._waiting], True
            for item in [*(item for worker in self._workers for item in worker.sent.values()), *left]:
                if not item.future.cancel():
                    item.settle(CancelledError())

    def _receive(self, worker: "_Worker") -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._lose(worker, worker.at())
            return
        match message:
            case "ready":
                worker.ready, self._grown = True, time.monotonic()
            case str(problem):
                self._lose(worker, None, problem)
            case (seconds, outcomes):
                mean = seconds / len(outcomes)
                self._mean = mean if self._mean is None else 0.7 * self._mean + 0.3 * mean
                self._blameless = 0
                for number, outcome in outcomes:
                    worker.sent.pop(number).settle(outcome)

    def _end_late(self) -> None:
        now = time.monotonic()
        for worker in [*self._workers]:
            if worker.sent and (late := worker.at(now - self._seconds)) is not None:
                self._lose(worker, late, f"took more than {self._seconds:g} s (limits.seconds){worker.where()}")

    def _lose(self, worker: "_Worker", at: int | None, how: str | None = None) -> None:
        """End a process, at this item if any, and run the rest of its chunk elsewhere."""
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        told = worker.own_message()
        end = worker.end()
        if not worker.ready:
            self._fail_all(StartError(how or told or f"A scoring process {end} before it was ready."))
            return
        guilty = worker.sent.pop(at, None) if at is not None else None
        self._put_back([*worker.sent.values()])
        if guilty is not None:
            guilty.settle(WorkerError(how or end))
        else:
            self._blameless += 1
            if self._blameless >= BLAMELESS_DEATHS:
                self._fail_all(StartError(f"Scoring processes end between two responses: the last one {end}."))

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, collections.deque()
        for item in waiting:
            item.settle(error)

    def _hand_out(self) -> None:
        for worker in [*self._workers]:
            if worker.ready and not worker.sent:
                self._give(worker, self._chunk())
        if self._mean is None or self._mean * CHUNK_ITEMS > CHUNK_SECONDS:
            return
        for worker in [*self._workers]:  # quick items: a process finds its next chunk in its socket
            if worker.ready and worker.sent and not worker.has_queue():
                self._give(worker, self._chunk(int(QUEUED_BYTES / worker.item_bytes / 2)), QUEUED_BYTES)

    def _give(self, worker: "_Worker", chunk: list["_Item"], most: int | None = None) -> None:
        """Send a chunk, or put it back where it has more than `most` bytes."""
        if not chunk:
            return
        message = ForkingPickler.dumps((worker.given, [item.item for item in chunk]))
        worker.item_bytes = len(message) / len(chunk)
        if most is not None and len(message) > most:
            self._put_back(chunk)
            return
        try:
            worker.give(chunk, message)
        except OSError:
            self._lose(worker, worker.at())

    def _grow(self) -> None:
        starting = any(not worker.ready for worker in self._workers)
        if not self._waiting or starting or len(self._workers) >= self._processes:
            return
        if not self._workers or time.monotonic() - self._grown > GROW_SECONDS:
            for _ in range(min(max(len(self._workers), 1), self._processes - len(self._workers))):
                worker = _Worker(self._start, self._environment)
                self._workers.append(worker)
                self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _put_back(self, items: Sequence["_Item"]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(items))

    def _chunk(self, most: int = CHUNK_ITEMS) -> list["_Item"]:
        with self._lock:
            fair = -(-len(self._waiting) // len(self._workers))
            fitting = CHUNK_SECONDS / self._mean if self._mean else 1
            size = int(min(max(1, min(fair, fitting)), most, len(self._waiting)))
            chunk = [self._waiting.popleft() for _ in range(size)]
        return [item for item in chunk if item.running or item.start()]


@dataclass(eq=False)
class _Item:
    item: Any
    read: Callable[[Any], Any]
    future: "Future[Any]"
    running: bool = False

    def start(self) -> bool:
        self.running = self.future.set_running_or_notify_cancel()
        return self.running

    def settle(self, outcome: Any) -> None:
        if not self.future.cancelled():
            try:
                self.future.set_result(self.read(outcome))
            except (Exception, CancelledError) as error:
                self.future.set_exception(error)


class _Worker:
    """A process as its pool sees it."""

    def __init__(self, start: Sequence[Any], environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        notes = os.memfd_create("workers")
        os.ftruncate(notes, mmap.PAGESIZE)
        self.progress = mmap.mmap(notes, PROGRESS.size)
        self.progress[:] = PROGRESS.pack(-1, 0.0)
        self.trace = os.memfd_create("workers")
        descriptors = (theirs.fileno(), notes, self.trace)
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN.format(path=sys.path, module=__name__, descriptors=descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
            env=environment,
        )
        theirs.close()
        os.close(notes)
        self.connection = Connection(ours.detach())
        self.ready = False
        self.sent: dict[int, _Item] = {}
        self.given = self.last = 0  # items so far, and the first of the last chunk
        self.item_bytes = 1.0  # mean of the last chunk
        with suppress(OSError):
            self.connection.send(start)

    def give(self, chunk: Sequence[_Item], message: memoryview) -> None:
        self.last = self.given
        self.sent |= {self.given + i: item for i, item in enumerate(chunk)}
        self.given += len(chunk)
        self.connection.send_bytes(message)

    def has_queue(self) -> bool:
        """Whether the process has another chunk after the one that it is at."""
        return next(iter(self.sent)) < self.last

    def at(self, begun_by: float = float("inf")) -> int | None:
        """The item that the process is at, if it began by then."""
        number, began = PROGRESS.unpack(self.progress[:])
        again, _ = PROGRESS.unpack(self.progress[:])
        return number if number == again and number in self.sent and began <= begun_by else None

    def own_message(self) -> str:
        """The process's own words on why it could not start, or where it is."""
        return os.pread(self.trace, 1 << 16, 0).decode(errors="replace")

    def where(self) -> str:
        """The line of Python that the process is at, as words."""
        with suppress(OSError):
            os.kill(self.process.pid, TRACE_SIGNAL)
            time.sleep(TICK_SECONDS)
            frames = re.findall(r'^  File "(.*)", line (\d+) in', self.own_message(), re.MULTILINE)
            if found := place([(file, int(line)) for file, line in reversed(frames)]):
                return f"; it was at {found}"
        return ""

    def end(self) -> str:
        """End the process and everything that it started; returns how it ended, in words."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.connection.close()
        self.progress.close()
        os.close(self.trace)
        if code >= 0:
            return f"ended its process with exit code {code}"
        return (
            f"was ended by {signal.Signals(-code).name}{', as when memory runs out' if code == -signal.SIGKILL else ''}"
        )


# ------------------------------------------------------------------------------------------------ in the process


def work(descriptor: int, notes: int, trace: int) -> None:
    """What a process does until its pool is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.dup2(2, 1)  # what is printed must not end up in a command's output
    connection = Connection(descriptor)
    progress = mmap.mmap(notes, PROGRESS.size)
    faulthandler.register(TRACE_SIGNAL, file=trace, all_threads=False)
    prepare, argument, memory = connection.recv()
    with suppress(OSError):  # if memory runs out, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        module, _, name = prepare.partition(":")
        function = getattr(importlib.import_module(module), name)(argument)
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send("ready")
    with suppress(EOFError):
        while True:
            first, items = connection.recv()
            _do(function, first, items, connection, progress)


def _do(function: Callable[[Any], Any], first: int, items: list[Any], connection: Connection, progress: Any) -> None:
    outcomes: list[tuple[int, Any]] = []
    flushed = time.monotonic()
    for number, item in enumerate(items, start=first):
        progress[:] = PROGRESS.pack(-1, 0.0)
        progress[:] = PROGRESS.pack(number, time.monotonic())
        outcomes.append((number, function(item)))
        now = time.monotonic()
        if now - flushed > FLUSH_SECONDS:
            connection.send((now - flushed, outcomes))
            outcomes, flushed = [], now
    progress[:] = PROGRESS.pack(-1, 0.0)
    if outcomes:
        connection.send((time.monotonic() - flushed, outcomes))


# ------------------------------------------------------------------------------------------------ threads instead


class Threads:
    """The same for functions that wait and are safe to call at the same time: `concurrent` of them, in threads here.

    A call that is late cannot be ended: its thread is left alone, and gives its turn to another call. Once `LATE` such
    threads are left, no other call begins, and each outcome is a StartError.
    """

    def __init__(self, function: Callable[[Any], Any], *, concurrent: int, seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._late: set[asyncio.Future[Any]] = set()
        self._turns = asyncio.Semaphore(concurrent)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="waiting scorers", daemon=True).start()

    def submit(self, item: Any, read: Callable[[Any], Any]) -> "Future[Any]":
        """As `Workers.submit`."""
        return asyncio.run_coroutine_threadsafe(self._in_turn(item, read), self._loop)

    async def _in_turn(self, item: Any, read: Callable[[Any], Any]) -> Any:
        async with self._turns:
            outcome = await self._call(item)
        return read(outcome)

    async def _call(self, item: Any) -> Any:
        if len(self._late) >= LATE:
            return StartError(
                f"{LATE} calls that took more than {self._seconds:g} s (limits.seconds) still run, each in a thread "
                "that cannot be ended. Let the scorer give up by itself, for example with a timeout of its client."
            )
        outcome: Future[Any] = Future()

        def call() -> None:
            try:
                outcome.set_result(self._function(item))
            except BaseException as error:
                outcome.set_exception(error)

        # Daemon, and no executor: Python would wait at its exit for threads of an executor.
        threading.Thread(target=call, name="waiting scorer", daemon=True).start()
        running = asyncio.wrap_future(outcome)
        if not (await asyncio.wait([running], timeout=self._seconds))[0]:
            self._late.add(running)
            running.add_done_callback(self._late.discard)
            return WorkerError(f"took more than {self._seconds:g} s (limits.seconds)")
        return running.result()

    def close(self) -> None:
        """Drop items without an outcome."""
        asyncio.run_coroutine_threadsafe(self._give_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _give_up(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
