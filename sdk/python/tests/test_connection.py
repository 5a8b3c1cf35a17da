"""Connections, streams and listeners against a scripted node."""

from __future__ import annotations

import asyncio
import json

from pilot_agents import frames

from .scripted import DATA, DATAGRAM, ERROR, FINISH, MESSAGE, OPEN, REQUEST, RESULT, SECONDS, ScriptedCase, passes


class Connections(ScriptedCase):
    async def test_a_delta_and_its_answer_are_these_bytes(self) -> None:
        node, peer, connection = await self.connected()
        self.assertEqual(node.address, "0:0000.0000.0001")
        await connection.send(b"anomalies: 47 -> 48")
        self.assertEqual(await peer.frame(), (MESSAGE, 0x200, b"anomalies: 47 -> 48"))
        peer.raw(bytes.fromhex("00000007 10 00000200") + b"ok")
        self.assertEqual(await connection.receive(), b"ok")

    async def test_connect_says_peer_port_and_time_and_fails_as_the_node_says(self) -> None:
        """L3.2, L6.1."""
        node, peer = await self.attached()
        connecting = asyncio.ensure_future(node.connect("b", 7000, timeout=1.5))
        number, members = await peer.asked("connect")
        self.assertEqual(members, {"peer": "b", "port": 7000, "timeout_ms": 1500})
        peer.say(ERROR, number, {"code": "refused", "words": "b refused: nobody listens on port 7000", "peer_code": 1})
        error = await self.assert_code("refused", connecting)
        self.assertEqual((error.peer_code, error.words), (1, "b refused: nobody listens on port 7000"))

    async def test_answers_come_in_any_order(self) -> None:
        """L1.3."""
        node, peer = await self.attached()
        first, second = (asyncio.ensure_future(node.connect(name, 7000)) for name in "bc")
        asked = [(await peer.asked("connect"))[0] for _ in range(2)]
        peer.say(RESULT, asked[1], {"connection": 0x400})
        self.assertEqual((await second).peer, "c")
        await self.assert_waits(first)
        peer.say(RESULT, asked[0], {"connection": 0x200})
        self.assertEqual((await first).peer, "b")

    async def test_messages_behind_the_answer_to_connect_are_not_lost(self) -> None:
        node, peer = await self.attached()
        connecting = asyncio.ensure_future(node.connect("b", 7000))
        number, _ = await peer.asked("connect")
        message = frames.encode(frames.Kind.MESSAGE, 0x200, b"at once")
        peer.raw(frames.encode(frames.Kind.RESULT, number, b'{"connection": 512}') + message)
        self.assertEqual(await (await connecting).receive(), b"at once")

    async def test_too_long_messages_are_refused_here(self) -> None:
        _, _, connection = await self.connected()
        await self.assert_code("too_long", connection.send(bytes(65_537)))

    async def test_closed_by_the_peer_what_had_arrived_is_read_first(self) -> None:
        """L4.1."""
        _, peer, connection = await self.connected()
        peer.say(MESSAGE, 0x200, b"one")
        peer.say(MESSAGE, 0x200, b"two")
        peer.event(0x200, "closed", code="closed", words="closed by b", peer_code=0)
        self.assertEqual((await connection.closed()).peer_code, 0)
        self.assertEqual([message async for message in connection], [b"one", b"two"])
        await self.assert_code("closed", connection.receive())
        await self.assert_code("closed", connection.send(b"x"))
        await self.assert_code("closed", connection.consumed(1))
        await connection.close()

    async def test_closing_says_code_and_reason_and_waits_for_the_answer(self) -> None:
        _, peer, connection = await self.connected()
        receiving = asyncio.ensure_future(connection.receive())
        closing = asyncio.ensure_future(connection.close(7, "enough"))
        number, members = await peer.asked("close")
        self.assertEqual(members, {"connection": 0x200, "code": 7, "reason": "enough"})
        await self.assert_waits(closing)
        peer.say(MESSAGE, 0x200, b"crossed it")
        peer.say(RESULT, number, {})
        await closing
        await self.assert_code("closed_here", receiving)
        await self.assert_code("closed_here", connection.send(b"x"))

    async def test_consumed_is_waited_for_and_said_in_the_error(self) -> None:
        """L4.2."""
        _, peer, connection = await self.connected()
        waiting = asyncio.ensure_future(connection.consumed(3))
        peer.event(0x200, "consumed", messages=2)
        await self.assert_waits(waiting)
        peer.event(0x200, "consumed", messages=3)
        await waiting
        self.assertEqual(connection.messages_consumed, 3)
        peer.event(0x200, "closed", code="peer_restarted", words="b is another process")
        error = await self.assert_code("peer_restarted", connection.receive())
        self.assertEqual(error.consumed, 3)

    async def test_datagrams_that_nobody_reads_make_way_for_newer_ones(self) -> None:
        """L5.5."""
        _, peer, connection = await self.connected()
        for number in range(300):
            peer.say(DATAGRAM, 0x200, bytes([number // 256, number % 256]))
        peer.say(MESSAGE, 0x200, b"behind")
        await connection.receive()
        self.assertEqual(connection.datagrams_dropped, 44)
        self.assertEqual(await connection.receive_datagram(), bytes([0, 44]))
        self.assertTrue(connection.send_datagram(b"lossy"))
        self.assertEqual(await peer.frame(), (DATAGRAM, 0x200, b"lossy"))

    async def test_peers_connections_and_stats(self) -> None:
        node, peer, connection = await self.connected()
        asking = asyncio.gather(node.peers(), node.connections(), node.stats(), connection.stats())
        said = {"name": "b", "address": "0:0.0.2", "up": True, "endpoint": None, "smoothed_rtt_us": 88, "connections": 1}
        await peer.answer("peers", peers=[{**said, "new_member": 1}])
        await peer.answer("connections", connections=[{"peer": "b"}])
        self.assertEqual(await peer.answer("stats", packets=7), {})
        self.assertEqual(await peer.answer("stats", sent=2), {"connection": 0x200})
        peers, connections, stats, own = await asking
        self.assertEqual((peers[0].name, peers[0].up, peers[0].endpoint), ("b", True, None))
        self.assertEqual((connections, stats, own), ([{"peer": "b"}], {"packets": 7}, {"sent": 2}))

    async def test_subscribers_get_events_and_one_that_does_not_read_ends(self) -> None:
        node, peer = await self.attached()
        subscribing = asyncio.ensure_future(node.subscribe())
        await peer.answer("subscribe")
        events = await subscribing
        peer.event(0, "tunnel_down", peer="b", reason="timed out")
        event = await anext(events)
        self.assertEqual((event.name, event.members), ("tunnel_down", {"peer": "b", "reason": "timed out"}))
        for _ in range(5000):
            peer.event(0, "tunnel_up", peer="b")
        answered = asyncio.ensure_future(node.stats())
        await peer.answer("stats")
        await answered
        for _ in range(4096):
            await anext(events)
        await self.assert_code("slow", anext(events))


class Streams(ScriptedCase):
    async def test_a_stream_of_our_own_is_these_frames(self) -> None:
        """L1.4: its id has bit 8, and below it what its connection's has."""
        _, peer, connection = await self.connected(0x203)
        stream = await connection.open_stream()
        kind, id, body = await peer.frame()
        self.assertEqual((kind, id & 0x1FF, body), (OPEN, 0x103, bytes.fromhex("0000020300")))
        await stream.write(bytes(65_537))
        self.assertEqual([len((await peer.frame())[2]) for _ in range(2)], [65_536, 1])
        await stream.finish()
        self.assertEqual(await peer.frame(), (FINISH, id, b""))
        self.assertEqual(stream.written, 65_537)
        await self.assert_code("closed_here", stream.write(b"x"))
        peer.say(DATA, id, b"abcdef")
        peer.say(FINISH, id)
        self.assertEqual([await stream.read(4), await stream.read(4), await stream.read(4)], [b"abcd", b"ef", b""])
        peer.event(id, "consumed", bytes=65_537)
        await asyncio.wait_for(stream.consumed(65_537), SECONDS)
        other = await connection.open_stream(unidirectional=True)
        kind, again, body = await peer.frame()
        self.assertEqual((kind, body), (OPEN, bytes.fromhex("0000020301")))
        self.assertNotEqual(again, id)
        await self.assert_code("closed_here", other.read())

    async def test_a_stream_of_the_peers_is_accepted_read_and_answered(self) -> None:
        _, peer, connection = await self.connected()
        peer.event(0x200, "stream", stream=0x600, unidirectional=False)
        peer.say(DATA, 0x600, b"question")
        peer.say(FINISH, 0x600)
        async with await connection.accept_stream() as stream:
            self.assertEqual(await stream.read_all(), b"question")
            await stream.write(b"answer")
        self.assertEqual([await peer.frame(), await peer.frame()], [(DATA, 0x600, b"answer"), (FINISH, 0x600, b"")])

    async def test_reset_stopped_and_closed_end_what_they_are_about(self) -> None:
        _, peer, connection = await self.connected()
        peer.event(0x200, "stream", stream=0x600, unidirectional=False)
        stream = await connection.accept_stream()
        peer.say(DATA, 0x600, b"some")
        peer.event(0x600, "reset", peer_code=9)
        self.assertEqual(await stream.read(), b"some")
        self.assertEqual((await self.assert_code("closed", stream.read())).peer_code, 9)
        await stream.write(b"still")
        self.assertEqual(await peer.frame(), (DATA, 0x600, b"still"))
        peer.event(0x600, "stopped", peer_code=8)
        await asyncio.wait_for(stream.stopped(), SECONDS)
        self.assertEqual((await self.assert_code("closed", stream.write(b"x"))).peer_code, 8)

        peer.event(0x200, "stream", stream=0x800, unidirectional=False)
        stream = await connection.accept_stream()
        reading = asyncio.ensure_future(stream.read())
        peer.event(0x200, "closed", code="timed_out", words="b does not answer")
        await self.assert_code("timed_out", reading)
        await self.assert_code("timed_out", stream.write(b"x"))

    async def test_giving_up_is_told_the_node_once(self) -> None:
        _, peer, connection = await self.connected()
        stream = await connection.open_stream()
        _, id, _ = await peer.frame()
        stream.reset(3)
        stream.reset(4)
        stream.stop(5)
        self.assertEqual(await peer.answer("reset"), {"stream": id, "code": 3})
        self.assertEqual(await peer.answer("stop"), {"stream": id, "code": 5})
        await connection.send(b"next")
        self.assertEqual((await peer.frame())[0], MESSAGE)

    async def test_an_error_in_async_with_resets_rather_than_finishes(self) -> None:
        _, peer, connection = await self.connected()
        with self.assertRaises(ZeroDivisionError):
            async with connection.open_stream():
                raise ZeroDivisionError
        await peer.frame()
        self.assertEqual((await peer.answer("reset"))["code"], 1)

    async def test_read_all_has_a_bound(self) -> None:
        _, peer, connection = await self.connected()
        peer.event(0x200, "stream", stream=0x600, unidirectional=True)
        peer.say(DATA, 0x600, bytes(11))
        await self.assert_code("too_long", (await connection.accept_stream()).read_all(10))

    async def test_streams_that_are_over_are_forgotten(self) -> None:
        node, _, connection = await self.connected()
        session = await node.session()
        for _ in range(100):
            async with connection.open_stream(unidirectional=True) as stream:
                await stream.write(b"x")
        del stream
        await passes()
        self.assertEqual((len(session.handlers), len(session.finished)), (1, 0))


class Listeners(ScriptedCase):
    async def test_a_connection_that_a_peer_opens_is_accepted(self) -> None:
        """L3.4."""
        node, peer = await self.attached()
        listening = asyncio.ensure_future(node.listen())
        self.assertEqual(await peer.answer("listen", port=49_152), {"port": 0})
        listener = await listening
        self.assertEqual(listener.port, 49_152)
        accepting = asyncio.ensure_future(listener.accept())
        peer.event(0x200, "incoming", peer="b", address="0:0000.0000.0002", port=49_152)
        self.assertEqual(await peer.answer("accept"), {"connection": 0x200})
        connection = await accepting
        self.assertEqual((connection.peer, connection.port), ("b", 49_152))
        peer.say(MESSAGE, 0x200, b"hello")
        self.assertEqual(await connection.receive(), b"hello")

    async def test_one_that_left_before_is_passed_over(self) -> None:
        node, peer = await self.attached()
        listening = asyncio.ensure_future(node.listen(7000))
        await peer.answer("listen", port=7000)
        listener = await listening
        for id in (0x200, 0x400, 0x600):
            peer.event(id, "incoming", peer="b", address="0:0000.0000.0002", port=7000)
        peer.event(0x200, "closed", code="closed", words="closed by b", peer_code=0)
        accepting = asyncio.ensure_future(listener.accept())
        number, members = await peer.asked("accept")
        self.assertEqual(members, {"connection": 0x400})
        peer.say(ERROR, number, {"code": "no_such", "words": "there is no connection 1024"})
        self.assertEqual(await peer.answer("accept"), {"connection": 0x600})
        await accepting

    async def test_a_port_that_is_closed_refuses_what_crossed(self) -> None:
        node, peer = await self.attached()
        listening = asyncio.ensure_future(node.listen(7000))
        await peer.answer("listen", port=7000)
        listener = await listening
        accepting = asyncio.ensure_future(listener.accept())
        await passes()
        await listener.close()
        await self.assert_code("closed_here", accepting)
        self.assertEqual(await peer.answer("unlisten"), {"port": 7000})
        peer.event(0x200, "incoming", peer="b", address="0:0000.0000.0002", port=7000)
        self.assertEqual((await peer.answer("refuse"))["connection"], 0x200)

    async def test_detaching_closes_connections_first(self) -> None:
        node, peer, _ = await self.connected()
        closing = asyncio.ensure_future(node.close())
        kind, number, body = await peer.frame()
        self.assertEqual((kind, json.loads(body)["op"]), (REQUEST, "close"))
        await self.assert_waits(closing)
        peer.say(RESULT, number, {})
        await closing
        self.assertTrue(await peer.at_end())
        await self.assert_code("closed_here", node.stats())
        self.assertEqual((await node.closed()).code, "closed_here")
