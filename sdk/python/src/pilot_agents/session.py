"""One session with the node: a socket, requests and their answers, and who gets which frame."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from . import frames
from .errors import PilotError, violation
from .flow import Inbox
from .frames import Frame, Json, Kind

T = TypeVar("T")

# Seconds for the answer to hello. The node gives an application as long (L1.2). Lower: a busy host fails; higher: a socket of
# something else, that never answers, holds the application up.
HELLO_SECONDS: Final = 5.0
# Seconds in which the node has read what was written before the end. Lower: a busy node loses the last of it; higher: one that
# hangs holds up whoever detaches.
LINGER_SECONDS: Final = 5.0
# Events with id 0 that wait for a subscriber. Lower: a burst of tunnels ends a subscription; higher: one that never reads costs
# more memory.
EVENTS: Final = 4096
# Streams that the application opens have this bit in their ids, and below it those of their connection's (L1.4).
STREAM_BIT: Final = 0x100
STREAM_COUNTS: Final = 1 << 23


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the node allows, from its answer to hello."""

    message_bytes: int
    data_bytes: int
    flow_credit_bytes: int
    client_credit_bytes: int
    frame_overhead_bytes: int
    requests: int


class Handler(Protocol):
    """What an id names: it is told each frame and event for it, in order, and returns at once."""

    def on_frame(self, frame: Frame) -> None: ...
    def on_event(self, name: str, event: Json) -> None: ...
    def on_end(self, error: PilotError) -> None: ...


class Session(asyncio.Protocol):
    """Lives from hello to the end of the socket. Nothing in it waits but those who send and who ask."""

    limits: Limits
    node: Json

    def __init__(self) -> None:
        self.ended: PilotError | None = None
        self.handlers: dict[int, Handler] = {}
        # Streams that are over in both directions, for as long as the application has them: it may ask how much was consumed.
        self.finished: WeakValueDictionary[int, Any] = WeakValueDictionary()
        # By port, who is offered connections there.
        self.listeners: dict[int, Callable[[int, Json], None]] = {}
        self.subscribers: set[Inbox[Json]] = set()
        self._transport: asyncio.Transport | None = None
        self._decoder = frames.Decoder()
        # By request: what its RESULT becomes, and who waits for that.
        self._asked: dict[int, tuple[asyncio.Future[Any], Callable[[Json], Any], Callable[[Any], None] | None]] = {}
        self._numbers = itertools.cycle(range(1, 1 << 32))
        self._streams = itertools.cycle(range(1, STREAM_COUNTS))
        self._credit = 0
        self._paused = False
        self._changed = asyncio.Event()
        # Whoever has the turn waits for the change; the others wait for the turn, however many they are.
        self._turn = asyncio.Lock()
        self._turn_to_ask = asyncio.Lock()
        self._is_over = asyncio.Event()
        self._lost = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, path: str, name: str | None) -> Session:
        """Connects and says hello (L1.2). Cancelled or failed, it leaves no socket open."""
        loop = asyncio.get_running_loop()
        try:
            _, session = await loop.create_unix_connection(cls, path)
        except OSError as error:
            raise PilotError("no_node", f"no node at {path}: {error.strerror or error}") from error
        try:
            hello = session._ask("hello", {"version": frames.VERSION, "name": name}, session._on_hello, None)
            await asyncio.wait_for(hello, HELLO_SECONDS)
        except asyncio.TimeoutError:
            session.end(PilotError("no_node", f"{path} does not answer: nothing in {HELLO_SECONDS:g} s"))
            raise cast(PilotError, session.ended).again() from None
        except BaseException:
            session.end(PilotError("closed_here", "the session was given up"))
            raise
        return session

    async def request(self, op: str, build: Callable[[Json], T], undo: Callable[[T], None] | None = None, **members: Any) -> T:
        """Asks, and returns what `build` makes of the RESULT at its arrival, before any frame behind it is read.

        Cancelled while it waits, the answer still comes; `undo` then gets what was built of it, as nobody else will.
        """
        async with self._turn_to_ask:
            while self.ended is None and (self._paused or len(self._asked) >= self.limits.requests):
                self._changed.clear()
                await self._changed.wait()
        return cast(T, await self._ask(op, members, build, undo))

    def later(self, op: str, **members: Any) -> None:
        """Asks without waiting. What the answer is makes no difference: what it is about is over for the application."""

        async def ask() -> None:
            with contextlib.suppress(PilotError):
                await self.request(op, lambda _: None, **members)

        self.spawn(ask())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is kept until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @contextlib.asynccontextmanager
    async def room(self, cost: int) -> AsyncIterator[None]:
        """Waits until the session has credit (L5.3) and the socket room. What is then done without waiting can be written.

        Its end lets everyone pass, who has been told of it by then and knows better what it means.
        """
        async with self._turn:
            while self.ended is None and (self._paused or self._credit < cost):
                self._changed.clear()
                await self._changed.wait()
            yield

    def spend(self, cost: int) -> None:
        self._credit -= cost

    def write(self, frame: bytes) -> None:
        if self._transport is not None and self.ended is None:
            self._transport.write(frame)

    def has_room(self) -> bool:
        """Whether what needs no credit can be written without waiting."""
        return self.ended is None and not self._paused

    def stream_id(self, connection: int) -> int:
        """L1.4: of a stream that the application opens."""
        for counted in self._streams:
            id = counted << 9 | STREAM_BIT | connection & 0xFF
            if id not in self.handlers and id not in self.finished:
                return id
        raise AssertionError("a cycle has no end")

    def subscribe(self) -> Inbox[Json]:
        events: Inbox[Json] = Inbox()
        if self.ended is not None:
            events.end(self.ended)
        self.subscribers.add(events)
        return events

    async def finish(self) -> None:
        """Ends the session when all that was written has gone to the node, or after LINGER_SECONDS."""
        self.end(PilotError("closed_here", "the application detached from the node"), flush=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._lost.wait(), LINGER_SECONDS)
        if self._transport is not None:
            self._transport.abort()

    async def over(self) -> PilotError:
        """Waits until the session has ended; says why."""
        await self._is_over.wait()
        assert self.ended is not None, "set together"
        return self.ended.again()

    def end(self, error: PilotError, *, flush: bool = False) -> None:
        """Nothing more is read or written, and everyone is told; the first reason stays."""
        if self.ended is not None:
            return
        self.ended = error
        if self._transport is not None:
            if flush:
                self._transport.close()
            else:
                self._transport.abort()
        for future, _, _ in self._asked.values():
            if not future.done():
                future.set_exception(error.again())
        self._asked.clear()
        for handler in [*self.handlers.values(), *self.finished.values()]:
            handler.on_end(error)
        for events in self.subscribers:
            events.end(error)
        self.handlers.clear()
        self.listeners.clear()
        self._changed.set()
        self._is_over.set()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
                if self.ended is not None:
                    return
        except PilotError as error:
            logging.getLogger("pilot_agents").warning("%s", error)
            self.end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        why = "" if exc is None else f": {exc}"
        self.end(PilotError("shutting_down", f"the node is gone: its end of the socket was closed{why}"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._changed.set()

    # Requests and frames.

    async def _ask(self, op: str, members: Json, build: Callable[[Json], Any], undo: Callable[[Any], None] | None) -> Any:
        if self.ended is not None:
            raise self.ended.again()
        number = next(number for number in self._numbers if number not in self._asked)
        frame = frames.request(number, op, members)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = (future, build, undo)
        self.write(frame)
        try:
            return await future
        except asyncio.CancelledError:
            # The answer may have come in the same pass of the loop as the cancellation.
            answered = future.done() and not future.cancelled() and future.exception() is None
            if answered and undo is not None:
                undo(future.result())
            raise

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind in (Kind.RESULT, Kind.ERROR):
            self._on_answer(frame)
        elif frame.kind is Kind.CREDIT and frame.id == 0:
            self._credit += frames.credit_of(frame.body)
            if self._credit > self.limits.client_credit_bytes:
                raise violation("more credit for the session than is owed")
            self._changed.set()
        elif frame.kind is Kind.EVENT:
            event = frames.json_of(frame.body)
            self._on_event(frame.id, frames.member(event, "event", str), event)
        elif frame.kind in (Kind.REQUEST, Kind.OPEN):
            raise violation(f"a frame {frame.kind.name}, which only applications send")
        elif handler := self._handler(frame.id):
            handler.on_frame(frame)

    def _on_answer(self, frame: Frame) -> None:
        body = frames.json_of(frame.body)
        if frame.kind is Kind.ERROR and frame.id == 0:
            self.end(frames.error_of(body))
            return
        asked = self._asked.pop(frame.id, None)
        if asked is None:
            raise violation(f"an answer to request {frame.id}, which was not asked")
        self._changed.set()
        future, build, undo = asked
        if frame.kind is Kind.ERROR:
            error = frames.error_of(body)
            if not future.done():
                future.set_exception(error)
            return
        try:
            built = build(body)
        except PilotError as error:
            if not future.done():
                future.set_exception(error.again())
            raise
        if not future.done():
            future.set_result(built)
        elif undo is not None:
            undo(built)

    def _on_event(self, id: int, name: str, event: Json) -> None:
        if id == 0:
            for events in self.subscribers:
                if len(events) < EVENTS:
                    events.put(event)
                else:
                    events.end(PilotError("slow", f"{EVENTS} events wait and are not read"))
        elif name == "incoming":
            offer = self.listeners.get(frames.count(event, "port"))
            if offer is None:
                self.later("refuse", connection=id, code=1)
            else:
                offer(id, event)
        elif handler := self._handler(id):
            handler.on_event(name, event)

    def _handler(self, id: int) -> Handler | None:
        return self.handlers.get(id) or self.finished.get(id)

    def _on_hello(self, result: Json) -> None:
        if frames.member(result, "version", int) != frames.VERSION:
            raise violation(f"version {result['version']}, and {frames.VERSION} was asked for")
        self.node = frames.member(result, "node", dict)
        given = frames.member(result, "limits", dict)
        self.limits = Limits(**{field.name: frames.count(given, field.name) for field in dataclasses.fields(Limits)})
        least = self.limits.message_bytes + self.limits.frame_overhead_bytes
        if self.limits.flow_credit_bytes < 2 * least or self.limits.data_bytes < 1 or self.limits.requests < 1:
            raise violation(f"limits that nothing can be sent with: {given}")
        self._credit = self.limits.client_credit_bytes
