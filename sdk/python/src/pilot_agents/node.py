"""The node of this host, as an application sees it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

from . import frames
from .connection import Connection
from .context import Context
from .document import Kind
from .errors import PilotError
from .flow import Inbox
from .frames import Json
from .listener import Listener
from .opening import Opening
from .session import Session

T = TypeVar("T")

# Seconds between tries to reach a node that is gone, from the first to the longest; each is shortened by chance to its half
# at most, so that the applications of a host do not come at once. Lower: a node that starts is disturbed; higher: they come late.
RECONNECT_SECONDS: Final = (0.05, 2.0)


@dataclass(frozen=True)
class Peer:
    """Another node, as the configuration names it."""

    name: str
    address: str
    up: bool
    endpoint: str | None
    smoothed_rtt_us: float | None
    connections: int


@dataclass(frozen=True)
class Event:
    """What happened at the node: `tunnel_up`, `tunnel_down` (with `peer` and `reason`), `shutting_down` (with `drain_ms`)."""

    name: str
    members: Json


class Node:
    """One session with the node, or with `reconnect` one after the other. Every method that waits can be cancelled."""

    def __init__(self, path: str, name: str | None, reconnect: bool, session: Session) -> None:
        self._path = path
        self._name = name
        self._reconnect = reconnect
        self._session = session
        self._over: PilotError | None = None
        self._changed = asyncio.Event()
        self._listeners: set[Listener] = set()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    @classmethod
    def attach(
        cls, path: str | os.PathLike[str] | None = None, *, name: str | None = None, reconnect: bool = False
    ) -> Opening[Node]:
        """Attaches to the node whose socket this is; without a path, the environment variable PILOT_SOCKET names it.

        name: what the node's operator sees. reconnect: when the node ends, the connections end with one error each, and the node
        is attached to again: what is called meanwhile waits, listeners and followings go on by themselves.
        """

        async def attach() -> Node:
            given = path if path is not None else os.environ.get("PILOT_SOCKET")
            if not given:
                raise PilotError("no_node", "no path was given, and PILOT_SOCKET is not set")
            return cls(os.fspath(given), name, reconnect, await Session.open(os.fspath(given), name))

        return Opening(attach())

    @property
    def address(self) -> str:
        """The node's overlay address."""
        return frames.member(self._session.node, "address", str)

    @property
    def public_key(self) -> str:
        return frames.member(self._session.node, "public_key", str)

    def connect(self, peer: str, port: int, *, timeout: float | None = None) -> Opening[Connection]:
        """A connection to a port of a peer: its name in the configuration, or its overlay address. timeout: seconds, else 20."""
        milliseconds = None if timeout is None else max(1, round(timeout * 1000))

        async def connect() -> Connection:
            session = await self.session()

            def build(result: Json) -> Connection:
                return Connection(session, frames.count(result, "connection"), peer, port)

            def undo(connection: Connection) -> None:
                session.spawn(connection.close())

            return await session.request("connect", build, undo, peer=peer, port=port, timeout_ms=milliseconds)

        return Opening(connect())

    def listen(self, port: int = 0) -> Opening[Listener]:
        """Listens on a port; 0 takes a free one."""

        async def listen() -> Listener:
            listener = Listener(port)
            await listener.listen(await self.session())
            self._listeners.add(listener)
            return listener

        return Opening(listen())

    async def peers(self) -> list[Peer]:
        """All peers of the configuration, and how they are."""
        result = await self._ask("peers")
        fields = Peer.__dataclass_fields__
        return [Peer(**{field: peer.get(field) for field in fields}) for peer in frames.member(result, "peers", list)]

    async def connections(self) -> list[Json]:
        """The node's connections, of all applications."""
        return frames.member(await self._ask("connections"), "connections", list)

    async def stats(self) -> Json:
        """What the node counts."""
        return await self._ask("stats")

    def subscribe(self) -> Opening[Events]:
        """What happens at the node from now on."""

        async def subscribe() -> Events:
            events = Events(self)
            await events.subscribe()
            return events

        return Opening(subscribe())

    def context(self, name: str, peer: str | None = None) -> Context:
        """The shared context that a peer, or this node itself, holds under a name."""
        return Context(self, name, peer)

    async def create_context(
        self,
        name: str,
        document: Any,
        *,
        kind: Kind | None = None,
        read: Sequence[str] = (),
        write: Sequence[str] = (),
        durable: bool = False,
    ) -> Context:
        """A new context of this node. read, write: the names of the peers that may follow it, and change it.

        document: bytes, or what JSON can say. A string is text, unless `kind` says that it is a log, or JSON.
        """
        context = Context(self, name, None)
        await context.create(document, kind, list(read), list(write), durable)
        return context

    async def closed(self) -> PilotError:
        """Waits until the node is gone for good; says why."""
        while self._over is None:
            self._changed.clear()
            await self._changed.wait()
        return self._over.again()

    async def close(self) -> None:
        """Closes all connections, when what was sent has arrived, and detaches."""
        if self._over is not None:
            return
        self._end(PilotError("closed_here", "the application detached from the node"))
        self._keeper.cancel()
        connections = [handler for handler in self._session.handlers.values() if isinstance(handler, Connection)]
        await asyncio.gather(*(connection.close() for connection in connections))
        await self._session.finish()

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # For what a node opens.

    @property
    def is_over(self) -> bool:
        """Whether there is no session and there will be none."""
        return self._over is not None or (self._session.ended is not None and not self._reconnect)

    async def session(self) -> Session:
        """The session; with `reconnect`, the next one when it is over."""
        while self._over is None and self._session.ended is not None and self._reconnect:
            self._changed.clear()
            await self._changed.wait()
        if error := self._over or self._session.ended:
            raise error.again()
        return self._session

    async def _ask(self, op: str) -> Json:
        return await (await self.session()).request(op, lambda result: result)

    async def _keep(self) -> None:
        """Attaches again whenever the session ends, with everything that listens."""
        while True:
            ended = await self._session.over()
            if not self._reconnect:
                self._end(ended)
                return
            try:
                session = await self._again()
            except PilotError as error:
                self._end(error)
                return
            for listener in list(self._listeners):
                try:
                    await listener.listen(session)
                except PilotError as error:
                    if session.ended is None:
                        listener.end(error)
            self._session = session
            self._changed.set()

    async def _again(self) -> Session:
        wait, longest = RECONNECT_SECONDS
        while True:
            try:
                return await Session.open(self._path, self._name)
            except PilotError as error:
                # A node that has become another one, which does not want this application, will not change its mind.
                if error.code in ("version", "not_allowed"):
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, longest)

    def _end(self, error: PilotError) -> None:
        self._over = self._over or error
        for listener in self._listeners:
            listener.end(error)
        self._changed.set()


class Events:
    """Made by `Node.subscribe`: `async for event in events`. Who lets 4096 wait gets the error `slow`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._events: Inbox[Json]
        self._leave: Callable[[], None]

    async def subscribe(self) -> None:
        session = await self._node.session()

        def build(_: Json) -> Inbox[Json]:
            return session.subscribe()

        self._events = await session.request("subscribe", build, session.subscribers.discard)
        self._leave = lambda: session.subscribers.discard(self._events)

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        while True:
            try:
                event = await self._events.get()
            except PilotError as error:
                if error.code == "slow" or self._node.is_over:
                    raise
                await self.subscribe()
                continue
            assert event is not None, "a subscription ends with an error"
            return Event(frames.member(event, "event", str), {k: v for k, v in event.items() if k != "event"})

    async def __aenter__(self) -> Events:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()
