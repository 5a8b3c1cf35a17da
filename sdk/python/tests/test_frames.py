"""Frames, byte by byte (local-protocol.md §1)."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Callable

from pilot_agents import Node, PilotError, frames
from pilot_agents.frames import Decoder, Frame, Kind

from .scripted import ERROR, EVENT, MESSAGE, OPEN, PART, RESULT, SECONDS, Peer, ScriptedCase

GOLDEN = [
    (
        "0000002c 01 00000001" + b'{"op":"connect","peer":"b","port":7000}'.hex(),
        frames.request(1, "connect", {"peer": "b", "port": 7000, "timeout_ms": None}),
    ),
    ("00000018 10 00000200" + b"anomalies: 47 -> 48".hex(), frames.encode(Kind.MESSAGE, 0x200, b"anomalies: 47 -> 48")),
    ("00000005 13 00000300", frames.encode(Kind.FINISH, 0x300)),
    ("00000009 14 00000200 00010053", frames.credit(0x200, 65_619)),
    ("0000000a 15 00000301 00000201 01", frames.open_stream(0x301, 0x201, True)),
]


class Bytes(unittest.TestCase):
    def test_frames_have_the_bytes_of_the_document(self) -> None:
        for expected, frame in GOLDEN:
            self.assertEqual(frame.hex(), expected.replace(" ", ""))

    def test_frames_are_read_from_any_pieces(self) -> None:
        """L1.1."""
        whole = b"".join(frame for _, frame in GOLDEN[1:3])
        expected = [Frame(Kind.MESSAGE, 0x200, b"anomalies: 47 -> 48"), Frame(Kind.FINISH, 0x300, b"")]
        for size in range(1, len(whole) + 1):
            decoder = Decoder()
            pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
            self.assertEqual([frame for piece in pieces for frame in decoder.feed(piece)], expected)

    def test_lengths_out_of_bounds_and_unknown_types_are_refused(self) -> None:
        """L1.1."""
        for data in ["00000004 02 000000", "00100001 10 00000001", "ffffffff", "00000005 05 00000001", "00000005 ff 00000001"]:
            with self.assertRaises(PilotError, msg=data):
                list(Decoder().feed(bytes.fromhex(data)))

    def test_what_comes_before_a_frame_that_cannot_be_read_is_read(self) -> None:
        read = []
        with self.assertRaises(PilotError):
            for frame in Decoder().feed(frames.encode(Kind.FINISH, 7) + b"\0\0\0\0"):
                read.append(frame)
        self.assertEqual(read, [Frame(Kind.FINISH, 7, b"")])

    def test_a_request_longer_than_a_frame_is_not_sent(self) -> None:
        with self.assertRaises(PilotError) as raised:
            frames.request(1, "context_create", {"document": "x" * frames.FRAME_BYTES})
        self.assertEqual(raised.exception.code, "too_long")


class Malformed(ScriptedCase):
    async def test_a_node_that_breaks_the_protocol_ends_the_session_and_says_how(self) -> None:
        wrong: dict[str, Callable[[Peer], object]] = {
            "a frame too short": lambda peer: peer.raw(b"\0\0\0\4\2\0\0\0"),
            "a frame too long": lambda peer: peer.raw(b"\0\x20\0\0"),
            "an unknown type": lambda peer: peer.say(0x7F, 1),
            "a type of the application's": lambda peer: peer.say(OPEN, 1, b"\0\0\0\1\0"),
            "no JSON": lambda peer: peer.say(EVENT, 0, b"{"),
            "no UTF-8": lambda peer: peer.say(EVENT, 0, b'{"event": "\xff"}'),
            "JSON too deep": lambda peer: peer.say(EVENT, 0, b"[" * 200_000),
            "no object": lambda peer: peer.say(EVENT, 0, b"[]"),
            "no event": lambda peer: peer.say(EVENT, 0, {}),
            "an answer to no request": lambda peer: peer.say(RESULT, 77, {}),
            "an error without words": lambda peer: peer.say(ERROR, 0, {"code": "malformed"}),
            "too much credit for the session": lambda peer: peer.raw(frames.credit(0, 1)),
            "too much credit for a connection": lambda peer: peer.raw(frames.credit(0x200, 1)),
            "credit of three bytes": lambda peer: peer.say(0x14, 0x200, b"\0\0\1"),
            "a part for a connection": lambda peer: peer.say(PART, 0x200, b"x"),
            "a number that is true": lambda peer: peer.event(0x200, "consumed", messages=True),
            "a number below 0": lambda peer: peer.event(0x200, "consumed", messages=-1),
            "messages without credit": lambda peer: peer.raw(4 * frames.encode(Kind.MESSAGE, 0x200, bytes(65_536))),
        }
        for what, say in wrong.items():
            with self.subTest(what), self.assertLogs("pilot_agents", "WARNING"):
                _, peer, connection = await self.connected()
                say(peer)
                error = await asyncio.wait_for(connection.closed(), SECONDS)
                self.assertEqual(error.code, "protocol", str(error))
                self.assertIn("broke the local protocol", error.words)
                while not await peer.at_end():
                    pass

    async def test_frames_for_ids_that_name_nothing_are_ignored(self) -> None:
        """L1.5."""
        _, peer, connection = await self.connected()
        for kind in (MESSAGE, 0x12, 0x13, PART):
            peer.say(kind, 0x999, b"x")
        peer.raw(frames.credit(0x999, 70))
        peer.event(0x999, "closed", code="closed", words="over")
        peer.say(MESSAGE, 0x200, b"still here")
        self.assertEqual(await connection.receive(), b"still here")

    async def test_another_version_no_hello_and_no_node_are_three_errors(self) -> None:
        """L1.2."""
        attaching = asyncio.ensure_future(Node.attach(self.path, name="test"))
        peer: Peer = await self.sessions.get()
        number, members = await peer.asked("hello")
        self.assertEqual(members, {"version": 1, "name": "test"})
        peer.say(ERROR, number, {"code": "version", "words": "given 1, spoken: 2"})
        error = await self.assert_code("version", attaching)
        self.assertIn("install", error.hint or "")
        self.assertTrue(await peer.at_end())

        attaching = asyncio.ensure_future(Node.attach(self.path))
        (await self.sessions.get()).leave()
        await self.assert_code("shutting_down", attaching)

        await self.stop_serving()
        error = await self.assert_code("no_node", Node.attach(self.path))
        self.assertIn(self.path, str(error))
        self.assertIn("pilot up", str(error))

    async def test_limits_that_nothing_can_be_sent_with_are_refused(self) -> None:
        attaching = asyncio.ensure_future(Node.attach(self.path))
        peer = await self.sessions.get()
        limits = {**self.limits, "flow_credit_bytes": 100}
        with self.assertLogs("pilot_agents", "WARNING"):
            await peer.answer("hello", version=1, node={}, limits=limits)
            await self.assert_code("protocol", attaching)

    async def test_an_answer_that_cannot_be_right_is_an_error_for_who_asked(self) -> None:
        node, peer = await self.attached()
        connecting = asyncio.ensure_future(node.connect("b", 7000))
        with self.assertLogs("pilot_agents", "WARNING"):
            await peer.answer("connect", connection="one")
            await self.assert_code("protocol", connecting)
        self.assertEqual((await node.closed()).code, "protocol")
