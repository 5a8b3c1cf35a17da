"""Requests and responses (local-protocol.md §7)."""

from __future__ import annotations

import asyncio

from pilot_agents import PilotError

from .scripted import DATA, FINISH, MESSAGE, OPEN, SECONDS, Peer, ScriptedCase


class Callers(ScriptedCase):
    async def called(self, peer: Peer) -> tuple[int, bytes]:
        """The stream of the next call, and what it says."""
        kind, id, _ = await peer.frame()
        self.assertEqual(kind, OPEN)
        kind, again, body = await peer.frame()
        self.assertEqual((kind, again), (DATA, id))
        self.assertEqual(await peer.frame(), (FINISH, id, b""))
        return id, body

    async def test_a_call_is_a_stream_with_the_time_that_is_left(self) -> None:
        """L7.1."""
        _, peer, connection = await self.connected()
        for timeout, expected in [(None, "00000000"), (1.5, "000005dc"), (10_000_000.0, "ffffffff")]:
            calling = asyncio.ensure_future(connection.call(b"question", timeout=timeout))
            id, body = await self.called(peer)
            self.assertEqual(body, bytes.fromhex(expected) + b"question")
            peer.say(DATA, id, b"\0ans")
            peer.say(DATA, id, b"wer")
            peer.say(FINISH, id)
            self.assertEqual(await calling, b"answer")

    async def test_what_is_no_response_is_an_error(self) -> None:
        _, peer, connection = await self.connected()
        for response, code, words in [
            (b"\1no such plan", "refused", "no such plan"),
            (b"\2", "protocol", ""),
            (b"", "protocol", ""),
        ]:
            calling = asyncio.ensure_future(connection.call(b"?"))
            id, _ = await self.called(peer)
            if response:
                peer.say(DATA, id, response)
            peer.say(FINISH, id)
            self.assertIn(words, (await self.assert_code(code, calling)).words)
        calling = asyncio.ensure_future(connection.call(b"?", most=4))
        id, _ = await self.called(peer)
        peer.say(DATA, id, b"\0four and more")
        await self.assert_code("too_long", calling)
        self.assertEqual(await peer.answer("stop"), {"stream": id, "code": 1})

    async def test_a_caller_that_gives_up_says_so(self) -> None:
        """L7.2: at its deadline, and cancelled."""
        _, peer, connection = await self.connected()
        calling = asyncio.ensure_future(connection.call(b"?", timeout=0.05))
        id, _ = await self.called(peer)
        await self.assert_code("timed_out", calling)
        self.assertEqual(await peer.answer("stop"), {"stream": id, "code": 1})
        calling = asyncio.ensure_future(connection.call(b"?"))
        id, _ = await self.called(peer)
        await self.cancel(calling)
        self.assertEqual(await peer.answer("stop"), {"stream": id, "code": 1})
        calling = asyncio.ensure_future(connection.call(bytes(1 << 20)))
        _, id, _ = await peer.frame()
        for _ in range(3):
            await peer.frame()
        await self.cancel(calling)
        self.assertEqual(await peer.answer("reset"), {"stream": id, "code": 1})


class Answerers(ScriptedCase):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        _, self.peer, self.connection = await self.connected()
        self.cancelled = 0
        self.next = 0x600

    def call(self, body: bytes) -> int:
        self.next += 0x200
        self.peer.event(0x200, "stream", stream=self.next, unidirectional=False)
        self.peer.say(DATA, self.next, body)
        self.peer.say(FINISH, self.next)
        return self.next

    async def answer(self, request: bytes) -> bytes:
        if request == b"wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        if request == b"refuse":
            raise PilotError("refused", "no such plan")
        if request == b"fail":
            raise ZeroDivisionError("a secret")
        return request.upper()

    async def test_calls_are_answered_and_one_that_waits_holds_no_other_back(self) -> None:
        """L7.1."""
        serving = asyncio.ensure_future(self.connection.serve(self.answer))
        self.call(b"\0\0\0\0wait")
        id = self.call(b"\0\0\0\0question")
        self.assertEqual(await self.peer.frame(), (DATA, id, b"\0QUESTION"))
        self.assertEqual(await self.peer.frame(), (FINISH, id, b""))
        id = self.call(b"\0\0\0\0refuse")
        self.assertEqual(await self.peer.frame(), (DATA, id, b"\1no such plan"))
        await self.peer.frame()
        with self.assertLogs("pilot_agents", "ERROR"):
            id = self.call(b"\0\0\0\0fail")
            self.assertEqual(await self.peer.frame(), (DATA, id, b"\1the application failed"))
        self.peer.event(0x200, "closed", code="closed", words="closed by b", peer_code=0)
        await asyncio.wait_for(serving, SECONDS)
        self.assertEqual(self.cancelled, 1)

    async def test_the_answer_is_given_up_with_the_caller_and_at_its_deadline(self) -> None:
        """L7.2."""
        serving = asyncio.ensure_future(self.connection.serve(self.answer))
        id = self.call(b"\0\0\0\0wait")
        self.peer.event(id, "stopped", peer_code=1)
        id = self.call(b"\0\0\0\x14wait")
        self.assertEqual(await self.peer.answer("reset"), {"stream": id, "code": 2})
        self.assertEqual(self.cancelled, 2)
        id = self.call(b"\0\0")
        self.assertEqual(await self.peer.answer("reset"), {"stream": id, "code": 2})
        await self.cancel(serving)

    async def test_more_calls_than_at_once_wait(self) -> None:
        serving = asyncio.ensure_future(self.connection.serve(self.answer, at_once=1))
        waits = self.call(b"\0\0\0\0wait")
        id = self.call(b"\0\0\0\0next")
        self.peer.say(MESSAGE, 0x200, b"behind the calls")
        await self.connection.receive()
        await self.assert_waits(serving)
        await self.connection.send(b"the second was not answered before this")
        self.assertEqual((await self.peer.frame())[0], MESSAGE)
        self.assertEqual(self.cancelled, 0)
        self.peer.event(waits, "stopped", peer_code=1)
        self.assertEqual(await self.peer.frame(), (DATA, id, b"\0NEXT"))
        await self.cancel(serving)
