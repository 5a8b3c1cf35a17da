"""Two applications at two real nodes: `real.py SOCKET_OF_A SOCKET_OF_B`, run by tests/tests/nodes/python.rs.

Each step prints its name when it is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections.abc import Awaitable
from typing import Any

from pilot_agents import Connection, Following, Listener, Node, PilotError, Stream

SECONDS = 60.0
PORT = 7000


async def fails(code: str, what: Awaitable[Any]) -> PilotError:
    try:
        await asyncio.wait_for(what, SECONDS)
    except PilotError as error:
        if error.code != code:
            raise
        return error
    raise AssertionError(f"expected {code}")


async def pair(node: Node, listener: Listener) -> tuple[Connection, Connection]:
    """A connection's two ends: it is not there before it was accepted (L3.2)."""
    return await asyncio.gather(node.connect("b", PORT, timeout=SECONDS), listener.accept())


async def messages(near: Connection, far: Connection) -> None:
    """More than the credit of a flow, so that it is given back many times; and none is lost or out of order."""
    sent = [random.randbytes(random.choice([0, 19, 1400, 65_536])) for _ in range(300)]

    async def send() -> None:
        for message in sent:
            await near.send(message)

    sending = asyncio.ensure_future(send())
    for expected in sent:
        assert await far.receive() == expected
    await sending
    await near.consumed(1)


async def streams(near: Connection, far: Connection) -> None:
    data = random.randbytes(4 << 20)

    async def echo(stream: Stream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.write(chunk)

    async with near.open_stream() as stream:

        async def send() -> None:
            await stream.write(data)
            await stream.finish()

        sending = asyncio.ensure_future(send())
        echoing = asyncio.ensure_future(echo(await far.accept_stream()))
        received = await stream.read_all()
        await asyncio.gather(sending, echoing)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    async with far.open_stream(unidirectional=True) as one_way:
        await one_way.write(b"one way")
    assert await (await near.accept_stream()).read_all() == b"one way"


async def slow_reader(node: Node, listener: Listener) -> None:
    """A connection that nobody reads holds its own sender up, and no other."""
    stuck, unread = await pair(node, listener)
    other, read = await pair(node, listener)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await stuck.send(bytes(65_536))
            sent += 1

    flooding = asyncio.ensure_future(flood())
    for number in range(100):
        await other.send(b"%d" % number)
        assert await read.receive() == b"%d" % number
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.5)
    assert not flooding.done()
    await other.send(b"still passes")
    assert await read.receive() == b"still passes"
    # What was on its way arrives when it is read.
    for _ in range(sent):
        assert await unread.receive() == bytes(65_536)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    await asyncio.gather(stuck.close(), other.close(), unread.close(), read.close())


async def calls(near: Connection, far: Connection) -> None:
    cancelled = asyncio.Event()

    async def answer(request: bytes) -> bytes:
        if request == b"wait":
            try:
                await asyncio.sleep(SECONDS)
            finally:
                cancelled.set()
        if request == b"refuse":
            raise PilotError("refused", "no such plan")
        return request[::-1]

    serving = asyncio.ensure_future(far.serve(answer))
    answers = await asyncio.gather(*(near.call(b"%d" % number, timeout=SECONDS) for number in range(100)))
    assert answers == [(b"%d" % number)[::-1] for number in range(100)]
    big = random.randbytes(1 << 20)
    assert await near.call(big) == big[::-1]
    assert (await fails("refused", near.call(b"refuse"))).words == "no such plan"
    await fails("timed_out", near.call(b"wait", timeout=0.2))
    await asyncio.wait_for(cancelled.wait(), SECONDS)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def contexts(a: Node, b: Node) -> None:
    """Both ends of all kinds, and what is refused."""
    plan = await a.create_context("plan", {"anomalies": 47, "tasks": ["watch"]}, read=["b"], write=["b"])
    there = b.context("plan", "a")
    async with there.follow() as copy, plan.follow() as own, there.follow(filter="/tasks/0") as part:
        assert (await copy.deltas(), copy.render()) == ('{"anomalies":47,"tasks":["watch"]}',) * 2
        assert (await anext(part)).document == "watch"
        first = copy.stamp
        assert await there.merge({"anomalies": 48}) == await reach(copy, 1)
        assert copy.document == {"anomalies": 48, "tasks": ["watch"]}
        refused = await fails("context", there.merge({}, if_stamp=first))
        assert refused.peer_code == 3, refused
        stamp = await plan.patch([{"op": "replace", "path": "/tasks/0", "value": "tell"}], if_stamp=copy.stamp)
        assert (stamp, (await anext(part)).document) == (await reach(copy, 2), "tell")
        assert (await reach(own, 2), own.document) == (stamp, copy.document)
        await plan.replace({"large": "x" * 500_000})
        assert (await reach(copy, 3), copy.document) == (await reach(own, 3), {"large": "x" * 500_000})
        await plan.delete()
        assert (await fails("context", reach(copy, 4))).peer_code == 1
    assert (await fails("context", b.context("none", "a").follow())).peer_code == 1
    assert (await fails("context", plan.merge({}))).peer_code == 1
    kinds: list[tuple[Any, Any, list[Any], Any]] = [
        ("42", "text", [{"replace": "[1]", "as": "text"}, {"edit": {"offset": 1, "removed": 1, "inserted": "ä"}}], "[ä]"),
        ("", "log", [{"append": "one\n"}, {"append": "two\n"}], "one\ntwo\n"),
        (b"\0\xff", None, [{"append": "AAE=", "as": "base64"}, {"write": {"offset": 1, "bytes": "/w=="}}], b"\0\xff\0\1"),
    ]
    for document, kind, changes, end in kinds:
        context = await a.create_context("it", document, kind=kind, read=["*"], write=["*"])
        async with b.context("it", "a").follow() as copy:
            assert (await anext(copy)).document == document
            for change in changes:
                await (context if "append" in change else b.context("it", "a")).change(change)
            await reach(copy, len(changes))
            assert copy.document == end, copy.document
        await context.delete()


async def reach(following: Following, version: int) -> str:
    """The stamp of a version, when the copy is at it."""
    while following.stamp is None or int(following.stamp.partition(":")[2]) < version:
        await asyncio.wait_for(anext(following), SECONDS)
    return following.stamp


async def errors(a: Node, b: Node) -> None:
    await fails("unknown_peer", a.connect("nobody", PORT))
    assert (await fails("refused", a.connect("b", 7999))).peer_code == 1
    await fails("port_in_use", b.listen(PORT))
    async with b.listen() as free:
        assert free.port >= 49_152


async def datagrams(near: Connection, far: Connection) -> None:
    while True:
        near.send_datagram(b"lossy")
        try:
            assert await asyncio.wait_for(far.receive_datagram(), 0.2) == b"lossy"
            return
        except asyncio.TimeoutError:
            continue


async def looks(a: Node, near: Connection) -> None:
    (peer,) = [peer for peer in await a.peers() if peer.name == "b"]
    assert (peer.up, peer.connections > 0) == (True, True), peer
    assert any(connection["port"] == PORT for connection in await a.connections())
    assert await near.stats()
    assert await a.stats()


async def ends(near: Connection, far: Connection) -> None:
    await near.send(b"last words")
    await near.close(0, "done")
    assert [message async for message in far] == [b"last words"]
    assert (await far.closed()).peer_code == 0


async def main(socket_of_a: str, socket_of_b: str) -> None:
    async with Node.attach(socket_of_a, name="a") as a, Node.attach(socket_of_b, name="b") as b, b.listen(PORT) as listener:
        near, far = await pair(a, listener)
        assert far.peer == "a", far.peer
        for name, step in [
            ("messages", messages(near, far)),
            ("streams", streams(near, far)),
            ("calls", calls(near, far)),
            ("slow reader", slow_reader(a, listener)),
            ("contexts", contexts(a, b)),
            ("errors", errors(a, b)),
            ("datagrams", datagrams(near, far)),
            ("looks", looks(a, near)),
            ("ends", ends(near, far)),
        ]:
            await asyncio.wait_for(step, 2 * SECONDS)
            print(name, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
