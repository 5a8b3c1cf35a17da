"""A stream: ordered bytes in a connection, written by one end or by both."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final

from . import frames
from .errors import PilotError, violation
from .flow import Inbox, Outbound, Progress
from .frames import Frame, Json, Kind

if TYPE_CHECKING:
    from .session import Session

# Bytes that read_all() takes unless told otherwise, as for the answer to a call. Lower: documents do not fit; higher: a peer can
# make the application hold more.
READ_ALL_BYTES: Final = 16 << 20


class Stream:
    """Made by `Connection.open_stream` and `Connection.accept_stream`. Every method that waits can be cancelled.

    readable, writable: whether the peer, or this end, writes to it.
    """

    def __init__(self, session: Session, id: int, *, readable: bool, writable: bool) -> None:
        self.readable = readable
        self.writable = writable
        self._session = session
        self._id = id
        self._written = 0
        self._rest = b""
        self._consumed = Progress()
        self._outbound = Outbound(session, id)
        self._inbox: Inbox[bytes] = Inbox(session.limits.flow_credit_bytes, lambda owed: session.write(frames.credit(id, owed)))
        if not readable:
            self._inbox.end(PilotError("closed_here", "only this end writes to the stream"))
        if not writable:
            self._outbound.end(PilotError("closed_here", "only the peer writes to the stream"))
        session.handlers[id] = self

    async def write(self, data: bytes) -> None:
        """Sends bytes, waiting while the peer does not read. Cancelled, it has sent some pieces of 64 KiB: see `written`."""
        piece = self._session.limits.data_bytes
        view = memoryview(data)
        for at in range(0, len(view), piece):
            part = bytes(view[at : at + piece])
            await self._outbound.send(Kind.DATA, part)
            self._written += len(part)

    async def finish(self) -> None:
        """Says that nothing comes behind what was written."""
        await self._outbound.finish()
        self._forget_if_over()

    async def read(self, most: int = 65_536) -> bytes:
        """The next bytes, at most so many; none at the end. Cancelled, it has read nothing."""
        if not self._rest:
            self._rest = await self._inbox.get() or b""
        data, self._rest = self._rest[:most], self._rest[most:]
        return data

    async def read_all(self, most: int = READ_ALL_BYTES) -> bytes:
        """Everything to the end. Raises `too_long` beyond `most` bytes. Cancelled, it loses what it has read."""
        whole = bytearray()
        while data := await self.read():
            whole += data
            if len(whole) > most:
                raise PilotError("too_long", f"the stream has more than {most} bytes")
        return bytes(whole)

    @property
    def written(self) -> int:
        """Bytes that were sent."""
        return self._written

    @property
    def bytes_consumed(self) -> int:
        """How many of them the peer's application is known to have read."""
        return self._consumed.value

    async def consumed(self, count: int) -> None:
        """Waits until the peer's application has read so many bytes of what was written."""
        await self._consumed.reach(count)

    async def stopped(self) -> None:
        """Waits until nothing can be written any more: it was finished or reset, or the peer does not read on."""
        await self._outbound.over()

    def reset(self, code: int) -> None:
        """Gives up writing: the peer gets an error with this code, and may not get what was written before."""
        if self._outbound.ended is None:
            self._outbound.end(PilotError("closed_here", f"the stream was reset here with code {code}"))
            self._session.later("reset", stream=self._id, code=code)
            self._forget_if_over()

    def stop(self, code: int) -> None:
        """Gives up reading: the peer's writes fail with this code."""
        if not self._inbox.is_over:
            self._inbox.end(PilotError("closed_here", f"the stream was stopped here with code {code}"))
            self._session.later("stop", stream=self._id, code=code)
            self._forget_if_over()
        self._inbox.clear()
        self._rest = b""

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if data := await self.read():
            return data
        raise StopAsyncIteration

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finished, or after an error reset; and read no more."""
        if error is not None:
            self.reset(1)
        elif self._outbound.ended is None:
            await self.finish()
        self.stop(0 if error is None else 1)

    # What the session tells.

    def on_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA:
            self._inbox.put(frame.body, len(frame.body) + self._session.limits.frame_overhead_bytes)
        elif frame.kind is Kind.FINISH:
            self._inbox.end(None)
            self._forget_if_over()
        elif frame.kind is Kind.CREDIT:
            self._outbound.on_credit(frames.credit_of(frame.body))
        else:
            raise violation(f"a frame {frame.kind.name} for a stream")

    def on_event(self, name: str, event: Json) -> None:
        if name == "closed":
            self._outbound.end(frames.error_of(event))
        elif name == "reset":
            code = frames.count(event, "peer_code")
            self._inbox.end(PilotError("closed", "the peer gave up writing to the stream", peer_code=code))
        elif name == "stopped":
            code = frames.count(event, "peer_code")
            self._outbound.end(PilotError("closed", "the peer reads no more of the stream", peer_code=code))
        elif name == "consumed":
            self._consumed.on_consumed(frames.count(event, "bytes"))
        elif name == "restarted":
            self._consumed.on_consumed(frames.count(event, "consumed"))
            self.on_end(PilotError("peer_restarted", "the peer's process is another one"))
        self._forget_if_over()

    def on_end(self, error: PilotError) -> None:
        error = error.again(self._consumed.value)
        self._outbound.end(error)
        self._inbox.end(error)
        self._consumed.end(error)
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        is_over = self._outbound.ended is not None and self._inbox.is_over
        if is_over and self._session.handlers.get(self._id) is self:
            self._session.finished[self._id] = self._session.handlers.pop(self._id)
