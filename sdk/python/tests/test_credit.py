"""Back-pressure in both directions (local-protocol.md §5), and what is left after a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pilot_agents import frames

from .scripted import CREDIT, DATA, LIMITS, MESSAGE, OPEN, RESULT, SECONDS, ScriptedCase, passes

FLOW = 262_144
COST = 65_536 + 64


class Credit(ScriptedCase):
    async def test_a_sender_stops_without_credit_and_goes_on_with_it(self) -> None:
        """L5.1, L5.2."""
        _, peer, connection = await self.connected()
        for _ in range(3):
            await connection.send(bytes(65_536))
        # What is left pays for one more of 65,280 bytes, not for one of a byte more.
        sending = asyncio.ensure_future(connection.send(bytes(FLOW - 3 * COST - 64 + 1)))
        await self.assert_waits(sending)
        peer.raw(frames.credit(0x200, 1))
        await asyncio.wait_for(sending, SECONDS)
        sent = [len((await peer.frame())[2]) + 64 for _ in range(4)]
        self.assertEqual(sum(sent), FLOW + 1)

    async def test_sends_are_in_order_even_if_a_shorter_one_had_credit(self) -> None:
        _, peer, connection = await self.connected()
        for _ in range(3):
            await connection.send(bytes(65_536))
        long = asyncio.ensure_future(connection.send(b"l" * 65_536))
        short = asyncio.ensure_future(connection.send(b"s"))
        await self.assert_waits(short)
        peer.raw(frames.credit(0x200, 3 * COST))
        await asyncio.gather(long, short)
        sent = [(await peer.frame())[2][:1] for _ in range(5)]
        self.assertEqual(sent[3:], [b"l", b"s"])

    async def test_a_flow_without_credit_holds_no_other_back(self) -> None:
        """L5.5."""
        _, peer, connection = await self.connected()
        stream = await connection.open_stream()
        writing = asyncio.ensure_future(stream.write(bytes(FLOW)))
        await self.assert_waits(writing)
        await asyncio.wait_for(connection.send(b"passes"), SECONDS)
        self.assertEqual(await self.last_of(peer, 5), (MESSAGE, 0x200, b"passes"))
        await self.cancel(writing)

    async def test_the_session_has_credit_in_all(self) -> None:
        """L5.3."""
        self.limits = {**LIMITS, "client_credit_bytes": 2 * COST}
        node, peer, connection = await self.connected()
        stream = await connection.open_stream()
        await stream.write(bytes(65_536))
        await connection.send(bytes(65_536))
        sending = asyncio.ensure_future(connection.send(b""))
        await self.assert_waits(sending)
        peer.raw(frames.credit(0x200, COST))
        await self.assert_waits(sending)
        self.assertTrue(connection.send_datagram(b"needs none"))
        asking = asyncio.ensure_future(node.stats())
        await self.last_of(peer, 4)
        await peer.answer("stats")
        await asking
        peer.raw(frames.credit(0, 64))
        await asyncio.wait_for(sending, SECONDS)

    async def test_what_is_read_is_given_back_and_what_is_not_is_not(self) -> None:
        """L5.2: before half of the beginning's credit is owed."""
        _, peer, connection = await self.connected()
        for _ in range(3):
            peer.say(MESSAGE, 0x200, bytes(65_536))
        marker = asyncio.ensure_future(connection.stats())
        await peer.answer("stats")
        await marker
        for _ in range(2):
            await connection.receive()
            self.assertEqual(await peer.frame(credit=True), (CREDIT, 0x200, COST.to_bytes(4, "big")))
        small = 65_536 // 65 + 1
        given = 0
        for _ in range(small):
            peer.say(MESSAGE, 0x200, b"x")
        await connection.receive()
        given += int.from_bytes((await peer.frame(credit=True))[2], "big")
        for _ in range(small):
            await connection.receive()
        given += int.from_bytes((await peer.frame(credit=True))[2], "big")
        self.assertEqual(given, COST + small * 65)

    async def test_what_is_read_is_given_back_at_once_where_nothing_waits(self) -> None:
        """L5.2, L4.2: so that the peer is told that it is consumed; behind FINISH, too."""
        _, peer, connection = await self.connected()
        peer.say(MESSAGE, 0x200, b"a")
        peer.say(MESSAGE, 0x200, b"bc")
        await connection.receive()
        await connection.receive()
        self.assertEqual(await peer.frame(credit=True), (CREDIT, 0x200, (2 * 64 + 3).to_bytes(4, "big")))
        peer.event(0x200, "stream", stream=0x600, unidirectional=True)
        stream = await connection.accept_stream()
        peer.say(DATA, 0x600, b"def")
        peer.say(0x13, 0x600)
        self.assertEqual(await stream.read_all(), b"def")
        self.assertEqual(await peer.frame(credit=True), (CREDIT, 0x600, (64 + 3).to_bytes(4, "big")))

    async def test_a_reader_keeps_its_sender_going_for_ever(self) -> None:
        """Bytes by the dozen megabytes, with the sender held to its credit."""
        _, peer, connection = await self.connected()
        peer.event(0x200, "stream", stream=0x600, unidirectional=True)
        stream = await connection.accept_stream()
        total, piece = 12 << 20, 40_000

        async def send() -> None:
            left, sent = FLOW, 0
            while sent < total:
                if left < piece + 64:
                    kind, id, body = await peer.frame(credit=True)
                    self.assertEqual((kind, id), (CREDIT, 0x600))
                    left += int.from_bytes(body, "big")
                    self.assertLessEqual(left, FLOW)
                else:
                    peer.say(DATA, 0x600, bytes(piece))
                    left, sent = left - piece - 64, sent + piece
            peer.say(0x13, 0x600)

        sending = asyncio.ensure_future(send())
        self.assertGreaterEqual(len(await asyncio.wait_for(stream.read_all(), SECONDS)), total)
        await sending

    async def test_a_socket_that_is_not_read_stops_senders_before_memory_does(self) -> None:
        _, peer, connection = await self.connected()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        streams = [await connection.open_stream() for _ in range(40)]
        writing = [asyncio.ensure_future(stream.write(bytes(65_536))) for stream in streams]
        await passes(200)
        done = sum(task.done() for task in writing)
        self.assertLess(done, 40)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while [kind for kind, _, _ in [await peer.frame()] if kind in (OPEN, DATA)]:
            if all(task.done() for task in writing):
                break

    @staticmethod
    async def last_of(peer: Any, count: int) -> tuple[int, int, bytes]:
        for _ in range(count - 1):
            await peer.frame()
        frame: tuple[int, int, bytes] = await peer.frame()
        return frame


class Cancelled(ScriptedCase):
    """Every await, cancelled: what was not done was not done, and what comes of it is not lost."""

    async def test_send_for_want_of_credit_sends_nothing_and_costs_nothing(self) -> None:
        _, peer, connection = await self.connected()
        for _ in range(3):
            await connection.send(bytes(65_536))
        waiting = [asyncio.ensure_future(connection.send(b"c" * 65_536)) for _ in range(3)]
        for task in waiting:
            await self.cancel(task)
        await connection.send(bytes(FLOW - 3 * COST - 64))
        sent = [(await peer.frame())[2][:1] for _ in range(4)]
        self.assertEqual(sent, [b"\0"] * 4)

    async def test_send_for_want_of_the_sessions_credit(self) -> None:
        self.limits = {**LIMITS, "client_credit_bytes": 2 * COST}
        _, peer, connection = await self.connected()
        await connection.send(bytes(65_536))
        await connection.send(bytes(65_535))
        for _ in range(2):
            await self.cancel(asyncio.ensure_future(connection.send(b"c")))
        peer.raw(frames.credit(0, 64 + 1))
        await asyncio.wait_for(connection.send(b"d"), SECONDS)
        self.assertEqual([(await peer.frame())[2][:1] for _ in range(3)], [b"\0", b"\0", b"d"])

    async def test_receive_read_and_accept_take_nothing(self) -> None:
        node, peer, connection = await self.connected()
        stream = await connection.open_stream()
        _, id, _ = await peer.frame()
        reads: list[tuple[Callable[[], Any], Callable[[], None], Any]] = [
            (connection.receive, lambda: peer.say(MESSAGE, 0x200, b"m"), b"m"),
            (connection.receive_datagram, lambda: peer.say(0x11, 0x200, b"d"), b"d"),
            (stream.read, lambda: peer.say(DATA, id, b"s"), b"s"),
        ]
        for read, say, expected in reads:
            task = asyncio.ensure_future(read())
            await self.cancel(task)
            # Cancelled in the same pass of the loop in which it arrives.
            task = asyncio.ensure_future(read())
            await passes()
            say()
            asking = asyncio.ensure_future(node.stats())
            await peer.answer("stats")
            while not asking.done() and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if task.cancelled():
                self.assertEqual(await asyncio.wait_for(read(), SECONDS), expected)
            else:
                self.assertEqual(task.result(), expected)
            await asking
        await self.cancel(asyncio.ensure_future(connection.accept_stream()))
        await self.cancel(asyncio.ensure_future(connection.consumed(1)))
        await self.cancel(asyncio.ensure_future(connection.closed()))

    async def test_connect_closes_what_the_answer_brings(self) -> None:
        node, peer = await self.attached()
        connecting = asyncio.ensure_future(node.connect("b", 7000).__aenter__())
        number, _ = await peer.asked("connect")
        await self.cancel(connecting)
        peer.say(RESULT, number, {"connection": 0x200})
        self.assertEqual((await peer.answer("close"))["connection"], 0x200)

    async def test_connect_closes_what_came_together_with_the_cancellation(self) -> None:
        node, peer = await self.attached()
        session = await node.session()
        connecting = asyncio.ensure_future(node.connect("b", 7000).__aenter__())
        number, _ = await peer.asked("connect")
        await passes()
        session.data_received(frames.encode(frames.Kind.RESULT, number, b'{"connection": 512}'))
        connecting.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await connecting
        self.assertEqual((await peer.answer("close"))["connection"], 0x200)

    async def test_listen_unlistens(self) -> None:
        node, peer = await self.attached()
        listening = asyncio.ensure_future(node.listen(7000).__aenter__())
        number, _ = await peer.asked("listen")
        await self.cancel(listening)
        peer.say(RESULT, number, {"port": 7000})
        self.assertEqual(await peer.answer("unlisten"), {"port": 7000})

    async def test_accept_leaves_the_connection_for_the_next_call(self) -> None:
        node, peer = await self.attached()
        listening = asyncio.ensure_future(node.listen(7000))
        await peer.answer("listen", port=7000)
        listener = await listening
        await self.cancel(asyncio.ensure_future(listener.accept()))
        peer.event(0x200, "incoming", peer="b", address="0:0000.0000.0002", port=7000)
        accepting = asyncio.ensure_future(listener.accept())
        number, _ = await peer.asked("accept")
        await self.cancel(accepting)
        peer.say(RESULT, number, {})
        peer.say(MESSAGE, 0x200, b"early")
        connection = await asyncio.wait_for(listener.accept(), SECONDS)
        self.assertEqual(await connection.receive(), b"early")

    async def test_close_closes_all_the_same(self) -> None:
        self.limits = {**LIMITS, "requests": 1}
        node, peer, connection = await self.connected()
        asking = asyncio.ensure_future(node.stats())
        number, _ = await peer.asked("stats")
        await self.cancel(asyncio.ensure_future(connection.close()))
        peer.say(RESULT, number, {})
        await asking
        self.assertEqual((await peer.answer("close"))["connection"], 0x200)

    async def test_requests_wait_for_a_place_and_give_it_back(self) -> None:
        """L1.3."""
        self.limits = {**LIMITS, "requests": 2}
        node, peer, connection = await self.connected()
        asking = [asyncio.ensure_future(node.stats()) for _ in range(3)]
        numbers = [(await peer.asked("stats"))[0] for _ in range(2)]
        await connection.send(b"the third was not asked before this")
        self.assertEqual((await peer.frame())[0], MESSAGE)
        await self.assert_waits(asking[2])
        for task in asking[:2]:
            await self.cancel(task)
        # A request that nobody waits for is without an answer all the same.
        await self.assert_waits(asking[2])
        peer.say(RESULT, numbers[0], {})
        await peer.answer("stats", packets=1)
        self.assertEqual(await asking[2], {"packets": 1})
