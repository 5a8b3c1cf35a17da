"""A node that goes away: one clear error, or with `reconnect` the next session."""

from __future__ import annotations

import asyncio

from pilot_agents import Connection, Node

from .scripted import ERROR, MESSAGE, PART, SECONDS, Peer, ScriptedCase, passes


class Gone(ScriptedCase):
    async def test_everyone_who_waits_gets_one_error_with_what_was_consumed(self) -> None:
        node, peer, connection = await self.connected()
        stream = await connection.open_stream()
        _, id, _ = await peer.frame()
        peer.event(0x200, "consumed", messages=5)
        peer.event(id, "consumed", bytes=7)
        waiting = [
            asyncio.ensure_future(what)
            for what in [
                connection.receive(),
                connection.receive_datagram(),
                connection.accept_stream(),
                connection.consumed(9),
                connection.send(bytes(65_536)),
                connection.call(b"?"),
                stream.read(),
                stream.consumed(8),
                stream.write(bytes(1 << 20)),
                node.stats(),
            ]
        ]
        expected = [5, 5, 5, 5, 0, 7, 7, 7, None]
        closed = asyncio.ensure_future(node.closed())
        await passes()
        peer.leave()
        for task in waiting:
            if task is not waiting[4]:
                error = await self.assert_code("shutting_down", task)
                self.assertEqual(error.consumed, expected.pop(0))
                self.assertIn("reconnect=True", str(error))
        self.assertEqual((await closed).code, "shutting_down")
        self.assertEqual((await connection.closed()).consumed, 5)
        await self.assert_code("shutting_down", node.connect("b", 7000))
        self.assertEqual((await self.assert_code("shutting_down", connection.send(b"x"))).consumed, 5)
        self.assertEqual((await self.assert_code("shutting_down", connection.open_stream())).consumed, 5)
        await connection.close()
        await node.close()

    async def test_an_error_for_the_session_is_the_one_that_is_told(self) -> None:
        _, peer, connection = await self.connected()
        peer.say(ERROR, 0, {"code": "slow", "words": "65536 frames wait"})
        peer.writer.close()
        await self.assert_code("slow", connection.receive())

    async def test_what_had_arrived_is_still_read(self) -> None:
        _, peer, connection = await self.connected()
        peer.say(MESSAGE, 0x200, b"last words")
        peer.writer.close()
        self.assertEqual((await asyncio.wait_for(connection.closed(), SECONDS)).code, "shutting_down")
        self.assertEqual(await connection.receive(), b"last words")
        await self.assert_code("shutting_down", connection.receive())


class Again(ScriptedCase):
    async def start(self) -> tuple[Node, Peer]:
        return await self.attached(reconnect=True)

    async def restart(self, peer: Peer) -> None:
        """The node is gone for a while, and then another process."""
        await self.stop_serving()
        peer.leave()
        await asyncio.sleep(0.1)
        await self.serve()

    async def test_what_is_asked_meanwhile_waits_for_the_next_session(self) -> None:
        node, peer = await self.start()
        connecting = asyncio.ensure_future(node.connect("b", 7000))
        await peer.answer("connect", connection=0x200)
        old = await connecting
        await self.restart(peer)
        await self.assert_code("shutting_down", old.receive())
        connecting = asyncio.ensure_future(node.connect("b", 7000))
        peer = await self.session()
        await peer.answer("connect", connection=0x200)
        new = await connecting
        await new.send(b"again")
        self.assertEqual(await peer.frame(), (MESSAGE, 0x200, b"again"))
        await self.assert_code("shutting_down", old.send(b"x"))
        peer.leave()

    async def test_listeners_subscriptions_and_followings_go_on(self) -> None:
        node, peer = await self.start()

        async def opened(peer: Peer) -> None:
            await peer.answer("listen", port=49_152)

        opening = asyncio.ensure_future(node.listen())
        await opened(peer)
        listener = await opening
        subscribing = asyncio.ensure_future(node.subscribe())
        await peer.answer("subscribe")
        events = await subscribing
        asking = asyncio.ensure_future(node.context("plan", peer="b").follow())
        await peer.answer("context_follow", following=0x200)
        following = await asking

        accepting: asyncio.Future[Connection] = asyncio.ensure_future(listener.accept())
        await self.restart(peer)
        peer = await self.session()
        self.assertEqual(await peer.answer("listen", port=49_152), {"port": 49_152})
        peer.event(0x400, "incoming", peer="b", address="0:0000.0000.0002", port=49_152)
        await peer.answer("accept")
        self.assertEqual((await asyncio.wait_for(accepting, SECONDS)).peer, "b")

        event = asyncio.ensure_future(anext(events))
        await peer.answer("subscribe")
        peer.event(0, "tunnel_up", peer="b")
        self.assertEqual((await event).name, "tunnel_up")

        update = asyncio.ensure_future(anext(following))
        await peer.answer("context_follow", following=0x600)
        peer.event(0x600, "whole", stamp="bb:0", kind="text", bytes=3)
        peer.say(PART, 0x600, b"new")
        self.assertEqual((await update).document, "new")

    async def test_a_listener_whose_port_was_taken_ends_alone(self) -> None:
        node, peer = await self.start()
        opening = asyncio.ensure_future(node.listen(7000))
        await peer.answer("listen", port=7000)
        listener = await opening
        await self.restart(peer)
        peer = await self.session()
        number, _ = await peer.asked("listen")
        peer.say(ERROR, number, {"code": "port_in_use", "words": "7000"})
        await self.assert_code("port_in_use", listener.accept())
        asking = asyncio.ensure_future(node.stats())
        await peer.answer("stats")
        await asking

    async def test_a_node_that_has_become_another_version_is_the_end(self) -> None:
        node, peer = await self.start()
        await self.restart(peer)
        asking = asyncio.ensure_future(node.stats())
        peer = await self.sessions.get()
        number, _ = await peer.asked("hello")
        peer.say(ERROR, number, {"code": "version", "words": "given 1, spoken: 2"})
        await self.assert_code("version", asking)
        self.assertEqual((await node.closed()).code, "version")

    async def test_closing_while_the_node_is_gone_ends_what_waits(self) -> None:
        node, peer = await self.start()
        await self.stop_serving()
        peer.leave()
        await passes()
        asking = asyncio.ensure_future(node.stats())
        await self.assert_waits(asking)
        await node.close()
        await self.assert_code("closed_here", asking)
