"""A connection: messages, datagrams and streams between an application here and one at a peer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from . import calls, frames
from .errors import PilotError, violation
from .flow import Inbox, Outbound, Progress
from .frames import Frame, Json, Kind
from .opening import Opening
from .stream import Stream

if TYPE_CHECKING:
    from .session import Session

# Datagrams that wait to be read; the oldest is dropped for one more. Lower: bursts are lost; higher: what is read is older.
DATAGRAMS: Final = 256


class Connection:
    """Made by `Node.connect` and `Listener.accept`. Every method that waits can be cancelled: then it has not been done.

    peer: the name, or address, of the other end's node. port: the one that its opener named.
    """

    def __init__(self, session: Session, id: int, peer: str, port: int) -> None:
        self.peer = peer
        self.port = port
        self._session = session
        self._id = id
        self._over: PilotError | None = None
        self._outbound = Outbound(session, id)
        self._messages: Inbox[bytes] = Inbox(
            session.limits.flow_credit_bytes, lambda owed: session.write(frames.credit(id, owed))
        )
        self._datagrams: Inbox[bytes] = Inbox()
        self._datagrams_dropped = 0
        self._incoming: Inbox[Stream] = Inbox()
        # The session keeps those that are not over.
        self._streams: WeakSet[Stream] = WeakSet()
        self._consumed = Progress()
        self._is_over = asyncio.Event()
        session.handlers[id] = self

    async def send(self, message: bytes) -> None:
        """Sends a message, waiting while the peer does not read. Cancelled, it was not sent."""
        if len(message) > self._session.limits.message_bytes:
            most = self._session.limits.message_bytes
            raise PilotError("too_long", f"a message has at most {most} bytes, and this one {len(message)}: use a stream")
        await self._outbound.send(Kind.MESSAGE, bytes(message))

    async def receive(self) -> bytes:
        """The next message, in the order they were sent. When the connection is over, and all was read, raises why."""
        message = await self._messages.get()
        assert message is not None, "a connection ends with an error"
        return message

    def send_datagram(self, datagram: bytes) -> bool:
        """Sends what may be lost. False when it was lost here already, for want of room."""
        if self._over is not None:
            raise self._over.again()
        if has_room := self._session.has_room():
            self._session.write(frames.encode(Kind.DATAGRAM, self._id, bytes(datagram)))
        return has_room

    async def receive_datagram(self) -> bytes:
        """The next datagram; of those that nobody read, the newest 256 are kept."""
        datagram = await self._datagrams.get()
        assert datagram is not None, "a connection ends with an error"
        return datagram

    @property
    def datagrams_dropped(self) -> int:
        """Datagrams that had arrived here and made way for newer ones."""
        return self._datagrams_dropped

    def open_stream(self, *, unidirectional: bool = False) -> Opening[Stream]:
        """A new stream; unidirectional, only this end writes to it."""
        return Opening(self._open_stream(unidirectional))

    async def accept_stream(self) -> Stream:
        """The next stream that the peer opened. Who accepts streams does not `serve` calls: those are streams, too."""
        stream = await self._incoming.get()
        assert stream is not None, "a connection ends with an error"
        return stream

    async def call(self, request: bytes, *, timeout: float | None = None, most: int = calls.CALL_BYTES) -> bytes:
        """Sends a request and returns the response, of at most `most` bytes (local-protocol.md L7.1).

        Raises `timed_out` after `timeout` seconds, and `refused` with the words of whoever answered that there is none. Cancelled
        or timed out, it tells the other end, which gives up, too.
        """
        return await calls.call(self, request, timeout, most)

    async def serve(
        self, answer: Callable[[bytes], Awaitable[bytes]], *, at_once: int = calls.AT_ONCE, most: int = calls.CALL_BYTES
    ) -> None:
        """Answers calls until the connection is over; returns when the peer closed it, or raises why.

        `answer` is cancelled when the caller gives up or its time has passed. PilotError from it goes to the caller in words.
        """
        await calls.serve(self, answer, at_once, most)

    @property
    def messages_consumed(self) -> int:
        """How many of the messages that were sent the peer's application is known to have read."""
        return self._consumed.value

    async def consumed(self, count: int) -> None:
        """Waits until the peer's application has read so many of the messages that were sent."""
        await self._consumed.reach(count)

    async def stats(self) -> Json:
        """What the node counts for this connection."""
        return await self._session.request("stats", lambda result: result, connection=self._id)

    async def closed(self) -> PilotError:
        """Waits until the connection is over; says why."""
        while self._over is None:
            await self._is_over.wait()
        return self._over.again()

    async def close(self, code: int = 0, reason: str = "") -> None:
        """Closes it when what was sent has arrived, at the latest after 5 seconds. Closed already, it does nothing.

        Cancelled, it is closed all the same.
        """
        if self._over is not None:
            return
        self.on_end(PilotError("closed_here", f"closed here with code {code}" + (f": {reason}" if reason else "")))
        self._messages.clear()
        asking = self._session.request("close", lambda _: None, connection=self._id, code=code, reason=reason)
        try:
            # An error says that it ended at the same time, or the session did: closed it is.
            with contextlib.suppress(PilotError):
                await asyncio.shield(self._session.spawn(asking))
        finally:
            self._forget()

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> bytes:
        """The next message, until the peer closes with code 0."""
        try:
            return await self.receive()
        except PilotError as error:
            if error.code == "closed" and error.peer_code == 0:
                raise StopAsyncIteration from None
            raise

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close(0 if error is None else 1)

    async def _open_stream(self, unidirectional: bool) -> Stream:
        async with self._session.room(0):
            if self._over is not None:
                raise self._over.again()
            id = self._session.stream_id(self._id)
            self._session.write(frames.open_stream(id, self._id, unidirectional))
            return self._stream(id, readable=not unidirectional, writable=True)

    def _stream(self, id: int, *, readable: bool, writable: bool) -> Stream:
        stream = Stream(self._session, id, readable=readable, writable=writable)
        self._streams.add(stream)
        return stream

    # What the session tells.

    def on_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.MESSAGE:
            self._messages.put(frame.body, len(frame.body) + self._session.limits.frame_overhead_bytes)
        elif frame.kind is Kind.DATAGRAM:
            if len(self._datagrams) == DATAGRAMS:
                self._datagrams.drop_oldest()
                self._datagrams_dropped += 1
            self._datagrams.put(frame.body)
        elif frame.kind is Kind.CREDIT:
            self._outbound.on_credit(frames.credit_of(frame.body))
        else:
            raise violation(f"a frame {frame.kind.name} for a connection")

    def on_event(self, name: str, event: Json) -> None:
        if name == "stream":
            unidirectional = frames.member(event, "unidirectional", bool)
            id = frames.count(event, "stream")
            self._incoming.put(self._stream(id, readable=True, writable=not unidirectional))
        elif name == "consumed":
            self._consumed.on_consumed(frames.count(event, "messages"))
        elif name == "restarted":
            self._consumed.on_consumed(frames.count(event, "consumed"))
        elif name == "closed":
            self.on_end(frames.error_of(event))
            self._forget()

    def on_end(self, error: PilotError) -> None:
        """L4.1: nothing comes behind; what came before can still be read."""
        if self._over is None:
            self._over = error.again(self._consumed.value)
        self._is_over.set()
        self._outbound.end(self._over)
        self._messages.end(self._over)
        self._datagrams.end(self._over)
        self._incoming.end(self._over)
        self._consumed.end(self._over)
        for stream in list(self._streams):
            stream.on_end(self._over)

    def _forget(self) -> None:
        if self._session.handlers.get(self._id) is self:
            del self._session.handlers[self._id]
