"""A node by script: the other end of the socket, that says and expects frames byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import tempfile
import unittest
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pilot_agents import Connection, Node, PilotError

REQUEST, RESULT, ERROR, EVENT = 0x01, 0x02, 0x03, 0x04
MESSAGE, DATAGRAM, DATA, FINISH, CREDIT, OPEN, PART = range(0x10, 0x17)

LIMITS = {
    "frame_bytes": 1_048_576,
    "message_bytes": 65_536,
    "data_bytes": 65_536,
    "flow_credit_bytes": 262_144,
    "client_credit_bytes": 16_777_216,
    "frame_overhead_bytes": 64,
    "requests": 1024,
    "connections": 16_384,
}
NODE = {"address": "0:0000.0000.0001", "public_key": "AAAA"}

# Long enough for any machine: what takes longer will not happen.
SECONDS = 20.0


class Peer:
    """The node's end of one session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self, *, credit: bool = False) -> tuple[int, int, bytes]:
        """The next frame that the application sends. CREDIT only where it is asked for: each thing that is read is given back."""
        while True:
            (length,) = struct.unpack(">I", await asyncio.wait_for(self.reader.readexactly(4), SECONDS))
            kind, id = struct.unpack(">BI", await self.reader.readexactly(5))
            body = await self.reader.readexactly(length - 5)
            if kind != CREDIT or credit:
                return kind, id, body

    async def asked(self, op: str) -> tuple[int, dict[str, Any]]:
        """The next frame, which must be this request; its number and members."""
        kind, id, body = await self.frame()
        members = json.loads(body)
        if kind != REQUEST or members.pop("op") != op:
            raise AssertionError(f"expected {op}: {kind:#x} {body!r}")
        return id, members

    async def answer(self, op: str, **result: Any) -> dict[str, Any]:
        id, members = await self.asked(op)
        self.say(RESULT, id, result)
        return members

    def say(self, kind: int, id: int, body: bytes | dict[str, Any] = b"") -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.raw(struct.pack(">IBI", 5 + len(data), kind, id) + data)

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def event(self, id: int, name: str, **members: Any) -> None:
        self.say(EVENT, id, {"event": name, **members})

    async def at_end(self) -> bool:
        """Whether the application ended the session."""
        try:
            return await asyncio.wait_for(self.reader.read(1), SECONDS) == b""
        except ConnectionError:
            return True

    def leave(self) -> None:
        self.writer.transport.abort()


class ScriptedCase(unittest.IsolatedAsyncioTestCase):
    """A socket in a directory of its own, where each session is put into a queue."""

    limits = LIMITS

    async def asyncSetUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = str(Path(directory.name) / "pilot.sock")
        self.peers: list[Peer] = []
        self.sessions: asyncio.Queue[Peer] = asyncio.Queue()
        await self.serve()

    async def asyncTearDown(self) -> None:
        self.server.close()
        for peer in self.peers:
            peer.leave()
        await passes()

    async def serve(self) -> None:
        async def on_session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            self.peers.append(peer)
            self.sessions.put_nowait(peer)

        self.server = await asyncio.start_unix_server(on_session, self.path)

    async def stop_serving(self) -> None:
        self.server.close()
        # From Python 3.13 on it is gone by itself.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    async def session(self) -> Peer:
        """The next session, greeted."""
        peer = await asyncio.wait_for(self.sessions.get(), SECONDS)
        await peer.answer("hello", version=1, versions=[1], node=NODE, limits=self.limits)
        return peer

    async def attached(self, **options: Any) -> tuple[Node, Peer]:
        attaching = asyncio.ensure_future(Node.attach(self.path, **options))
        peer = await self.session()
        node = await attaching

        async def close() -> None:
            peer.leave()
            await node.close()

        self.addAsyncCleanup(close)
        return node, peer

    async def connected(self, id: int = 0x200) -> tuple[Node, Peer, Connection]:
        node, peer = await self.attached()
        connecting = asyncio.ensure_future(node.connect("b", 7000))
        await peer.answer("connect", connection=id)
        return node, peer, await connecting

    async def assert_code(self, code: str, what: Awaitable[Any]) -> PilotError:
        with self.assertRaises(PilotError) as raised:
            await asyncio.wait_for(what, SECONDS)
        self.assertEqual(raised.exception.code, code, str(raised.exception))
        return raised.exception

    async def cancel(self, what: asyncio.Future[Any]) -> None:
        """It waits until it is cancelled."""
        await self.assert_waits(what)
        what.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await what

    async def assert_waits(self, what: asyncio.Future[Any]) -> None:
        """It does not go on, however often the loop runs."""
        await passes()
        self.assertFalse(what.done())


async def passes(count: int = 50) -> None:
    """Lets everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits until it is so."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), SECONDS)
