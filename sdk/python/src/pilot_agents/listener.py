"""A port that is listened on, and the connections that peers open to it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from . import frames
from .connection import Connection
from .errors import PilotError
from .flow import Inbox
from .frames import Frame, Json

if TYPE_CHECKING:
    from .session import Session


class Listener:
    """Made by `Node.listen`. With `reconnect`, it goes on listening on its port after the node was restarted."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._session: Session
        self._offers: Inbox[_Offer] = Inbox()
        self._accepting: asyncio.Task[Connection] | None = None
        self._turn = asyncio.Lock()

    async def accept(self) -> Connection:
        """The next connection that a peer opens. Cancelled, it leaves that for the next call."""
        while True:
            async with self._turn:
                if self._accepting is None:
                    offer = await self._offers.get()
                    assert offer is not None, "a listener ends with an error"
                    self._accepting = offer.session.spawn(offer.accept())
                task = self._accepting
                try:
                    return await asyncio.shield(task)
                except PilotError as error:
                    # The peer, or the session, has gone since: the next offer, or the listener's end, says more.
                    if error.code not in ("no_such", "closed", "shutting_down", "timed_out", "peer_restarted"):
                        raise
                finally:
                    if task.done():
                        self._accepting = None

    async def close(self) -> None:
        """Listens no more. Connections that were accepted stay."""
        if self._offers.is_over:
            return
        self.end(PilotError("closed_here", f"port {self.port} is listened on no more"))
        self._offers.clear()
        self._session.listeners.pop(self.port, None)
        self._session.later("unlisten", port=self.port)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Connection:
        return await self.accept()

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # What the node tells.

    async def listen(self, session: Session) -> None:
        """In this session from now on."""

        def build(result: Json) -> None:
            self.port = frames.count(result, "port")
            self._session = session
            session.listeners[self.port] = self._offer

        def undo(_: None) -> None:
            session.listeners.pop(self.port, None)
            session.later("unlisten", port=self.port)

        await session.request("listen", build, undo, port=self.port)

    def end(self, error: PilotError) -> None:
        self._offers.end(error)

    def _offer(self, id: int, event: Json) -> None:
        offer = _Offer(self._session, self._offers, id, frames.member(event, "peer", str), self.port)
        self._offers.put(offer)


class _Offer:
    """A connection that was offered and not yet taken. The node bounds how many wait (L3.4)."""

    def __init__(self, session: Session, offers: Inbox[_Offer], id: int, peer: str, port: int) -> None:
        self.session = session
        self._offers = offers
        self._id = id
        self._peer = peer
        self._port = port
        session.handlers[id] = self

    async def accept(self) -> Connection:
        def build(_: Json) -> Connection:
            return Connection(self.session, self._id, self._peer, self._port)

        return await self.session.request("accept", build, connection=self._id)

    def on_frame(self, frame: Frame) -> None:
        # L3.5: nothing is sent on it. What a node sends all the same is for nobody.
        pass

    def on_event(self, name: str, event: Json) -> None:
        if name == "closed":
            self._offers.remove(self)
            self.session.handlers.pop(self._id, None)

    def on_end(self, error: PilotError) -> None:
        self._offers.remove(self)
