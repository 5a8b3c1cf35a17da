"""Shared contexts: changes, followings, and what a change makes of a document."""

from __future__ import annotations

import asyncio
import json
import unittest
from collections.abc import Awaitable
from typing import Any

from pilot_agents import PilotError
from pilot_agents.document import apply

from .scripted import CREDIT, ERROR, PART, REQUEST, Peer, ScriptedCase

# Kind, document, change, and the document behind it; None: it does not fit.
APPLIED: list[tuple[Any, Any, Any, Any]] = [
    ("json", {"a": 1}, {"replace": [1]}, [1]),
    ("json", {"a": 1, "b": {"c": 2, "d": 3}}, {"merge": {"a": None, "b": {"c": 4}}}, {"b": {"c": 4, "d": 3}}),
    ("json", {"a": [1]}, {"merge": {"a": {"b": None}}}, {"a": {}}),
    ("json", [1, 2], {"patch": [{"op": "add", "path": "/1", "value": 9}]}, [1, 9, 2]),
    ("json", [1, 2], {"patch": [{"op": "add", "path": "/-", "value": 9}]}, [1, 2, 9]),
    ("json", {"a/b": {"~": 1}}, {"patch": [{"op": "replace", "path": "/a~1b/~0", "value": 2}]}, {"a/b": {"~": 2}}),
    ("json", {"a": 1}, {"patch": [{"op": "remove", "path": "/a"}, {"op": "add", "path": "/b", "value": None}]}, {"b": None}),
    ("json", {"a": [{"b": 1}]}, {"patch": [{"op": "replace", "path": "/a/0/b", "value": 2}]}, {"a": [{"b": 2}]}),
    ("json", {"a": [1, 2]}, {"patch": [{"op": "move", "from": "/a/0", "path": "/a/1"}]}, {"a": [2, 1]}),
    ("json", {"a": {"b": 1}}, {"patch": [{"op": "copy", "from": "/a", "path": "/c"}]}, {"a": {"b": 1}, "c": {"b": 1}}),
    ("json", {"a": 1}, {"patch": [{"op": "replace", "path": "", "value": 5}]}, 5),
    ("json", {"a": 1.0}, {"patch": [{"op": "test", "path": "/a", "value": 1}]}, {"a": 1.0}),
    ("json", {"a": 1}, {"patch": [{"op": "test", "path": "/a", "value": True}]}, None),
    ("json", {"a": [0]}, {"patch": [{"op": "test", "path": "/a", "value": [False]}]}, None),
    ("json", {"a": {}}, {"patch": [{"op": "move", "from": "/a", "path": "/a/b"}]}, None),
    ("json", [1], {"patch": [{"op": "replace", "path": "/-", "value": 1}]}, None),
    ("json", [1], {"patch": [{"op": "add", "path": "/2", "value": 1}]}, None),
    ("json", [1], {"patch": [{"op": "add", "path": "/00", "value": 1}]}, None),
    ("json", {}, {"patch": [{"op": "remove", "path": "/a"}]}, None),
    ("json", {}, {"patch": [{"op": "add", "path": "a", "value": 1}]}, None),
    ("json", {}, {"patch": [{"op": "burn", "path": "/a"}]}, None),
    ("json", 5, {"values": [["/a/b", 1], ["/c"]]}, {"a": {"b": 1}}),
    ("json", {"a": {"b": 1}, "c": 2}, {"values": [["/a/b"], ["/c", None]]}, {"a": {}, "c": None}),
    ("json", {"a": 1}, {"values": [["", [7]]]}, [7]),
    ("text", "grün", {"edit": {"offset": 2, "removed": 2, "inserted": "ue"}}, "gruen"),
    ("text", "grün", {"edit": {"offset": 3, "removed": 1, "inserted": ""}}, None),
    ("text", "abc", {"edit": {"offset": 2, "removed": 2, "inserted": ""}}, None),
    ("text", "abc", {"append": "d"}, "abcd"),
    ("log", "one\n", {"append": "two\n"}, "one\ntwo\n"),
    ("log", "one\n", {"edit": {"offset": 0, "removed": 0, "inserted": "x"}}, None),
    ("bytes", b"\0\1\2", {"write": {"offset": 1, "bytes": "//8="}}, b"\0\xff\xff"),
    ("bytes", b"\0\1\2", {"write": {"offset": 3, "bytes": "//8="}}, b"\0\1\2\xff\xff"),
    ("bytes", b"\0\1\2", {"write": {"offset": 4, "bytes": "//8="}}, None),
    ("bytes", b"\0", {"append": "AQI="}, b"\0\1\2"),
    ("bytes", b"\0", {"replace": "AQI="}, b"\1\2"),
    ("bytes", b"\0", {"replace": "!"}, None),
    ("bytes", b"\0", {"merge": {}}, None),
    ("json", {}, {"merge": {}, "replace": 1}, None),
    ("json", {}, {"no_such": 1}, None),
]


class Documents(unittest.TestCase):
    def test_changes_make_of_documents_what_context_md_says(self) -> None:
        """context.md C4.2, C4.4; and what was given out before stays as it was."""
        for kind, document, change, expected in APPLIED:
            with self.subTest(kind=kind, document=document, change=change):
                before = repr(document)
                if expected is None:
                    with self.assertRaises(PilotError) as raised:
                        apply(kind, document, change)
                    self.assertEqual(raised.exception.code, "context")
                else:
                    made = apply(kind, document, change)
                    self.assertEqual((type(made), made), (type(expected), expected))
                self.assertEqual(repr(document), before)


class Contexts(ScriptedCase):
    async def test_create_and_change_are_these_requests(self) -> None:
        node, peer = await self.attached()
        creating = asyncio.ensure_future(node.create_context("plan", {"anomalies": 47}, read=["b"], write=["b"]))
        self.assertEqual(
            await peer.answer("context_create", stamp="00000000000000aa:0"),
            {
                "name": "plan",
                "kind": "json",
                "document": {"anomalies": 47},
                "read": ["b"],
                "write": ["b"],
                "durable": False,
            },
        )
        own = await creating
        plan = node.context("plan", peer="b")
        stamp = "00000000000000aa:1"
        changes: list[tuple[Awaitable[str], dict[str, Any]]] = [
            (own.merge({"anomalies": 48}), {"change": {"merge": {"anomalies": 48}}}),
            (plan.merge({"a": 1}, if_stamp=stamp), {"peer": "b", "change": {"merge": {"a": 1}}, "if_stamp": stamp}),
            (own.replace(b"\1\2"), {"change": {"replace": "AQI=", "as": "base64"}}),
            (own.replace("x"), {"change": {"replace": "x", "as": "text"}}),
            (own.append(b"\1\2"), {"change": {"append": "AQI=", "as": "base64"}}),
            (own.append("x"), {"change": {"append": "x"}}),
            (own.edit(1, 2, "x"), {"change": {"edit": {"offset": 1, "removed": 2, "inserted": "x"}}}),
            (own.write(1, b"\1\2"), {"change": {"write": {"offset": 1, "bytes": "AQI="}}}),
            (own.patch([{"op": "remove", "path": "/a"}]), {"change": {"patch": [{"op": "remove", "path": "/a"}]}}),
        ]
        for changing, expected in changes:
            task = asyncio.ensure_future(changing)
            self.assertEqual(await peer.answer("context_change", stamp=stamp), {"name": "plan", **expected})
            self.assertEqual(await task, stamp)

        task = asyncio.ensure_future(own.merge({}, if_stamp=stamp))
        number, _ = await peer.asked("context_change")
        peer.say(ERROR, number, {"code": "context", "words": "it is at version 2", "peer_code": 3})
        self.assertEqual((await self.assert_code("context", task)).peer_code, 3)

    async def test_null_is_a_document_and_a_string_may_be_a_log(self) -> None:
        node, peer = await self.attached()
        for document, kind, expected in [(None, None, "json"), ("", None, "text"), ("", "log", "log"), (b"", None, "bytes")]:
            creating = asyncio.ensure_future(node.create_context("x", document, kind=kind))  # type: ignore[arg-type]
            members = await peer.answer("context_create", stamp="0:0")
            self.assertEqual((members["kind"], members["document"]), (expected, None if document is None else ""))
            await creating

    async def following(self) -> tuple[Any, Peer, Any]:
        node, peer = await self.attached()
        asking = asyncio.ensure_future(node.context("plan", peer="b").follow(filter="/x"))
        members = await peer.answer("context_follow", following=0x200)
        self.assertEqual(members, {"peer": "b", "name": "plan", "filter": "/x", "latest": False})
        return node, peer, await asking

    @staticmethod
    def say(peer: Peer, name: str, stamp: str, what: Any, pieces: int = 1, **members: Any) -> None:
        data = json.dumps(what).encode()
        peer.event(0x200, name, stamp=stamp, bytes=len(data), **members)
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            peer.say(PART, 0x200, data[at : at + size])

    async def test_a_follower_gets_the_document_and_then_deltas(self) -> None:
        _, peer, following = await self.following()
        self.say(peer, "whole", "aa:0", {"anomalies": 47}, pieces=3, kind="json")
        self.say(peer, "changed", "aa:1", {"merge": {"anomalies": 48}}, pieces=2)
        peer.event(0x200, "checked", stamp="aa:1")
        first = await anext(following)
        self.assertEqual((first.name, first.stamp, first.document, first.change), ("whole", "aa:0", {"anomalies": 47}, None))
        second = await anext(following)
        self.assertEqual((second.name, second.stamp, second.document), ("changed", "aa:1", {"anomalies": 48}))
        self.assertEqual(second.change, {"merge": {"anomalies": 48}})
        self.assertEqual(first.document, {"anomalies": 47})
        peer.event(0x200, "ended", code="context", words="b holds it no more", peer_code=1)
        await self.assert_code("context", anext(following))

    async def test_an_update_is_awaited_in_pieces_however_often_it_is_cancelled(self) -> None:
        _, peer, following = await self.following()
        peer.event(0x200, "whole", stamp="aa:0", kind="text", bytes=6)
        for piece in (b"ab", b"cd"):
            peer.say(PART, 0x200, piece)
            await self.cancel(asyncio.ensure_future(anext(following)))
        peer.say(PART, 0x200, b"ef")
        self.assertEqual((await anext(following)).document, "abcdef")

    async def test_credit_for_parts_is_given_as_updates_are_read(self) -> None:
        """L5.2."""
        _, peer, following = await self.following()
        peer.event(0x200, "whole", stamp="aa:0", kind="text", bytes=3 * 65_536)
        for _ in range(3):
            peer.say(PART, 0x200, b"x" * 65_536)
        await anext(following)
        # The event costs as much as an empty frame.
        for given in (64 + 65_536 + 64, 65_536 + 64, 65_536 + 64):
            self.assertEqual(await peer.frame(credit=True), (CREDIT, 0x200, given.to_bytes(4, "big")))

    async def test_a_model_is_given_the_document_and_then_all_deltas_at_once(self) -> None:
        _, peer, following = await self.following()
        self.say(peer, "whole", "aa:0", {"b": "ä", "a": [1, 2]}, kind="json")
        self.assertEqual(await following.deltas(), '{"a":[1,2],"b":"ä"}')
        for number in (1, 2):
            self.say(peer, "changed", f"aa:{number}", {"merge": {"b": number}})
            peer.event(0x200, "checked", stamp=f"aa:{number}")
        self.say(peer, "changed", "aa:3", {"merge": {"b": None}})
        await asyncio.sleep(0.05)
        self.assertEqual(await following.deltas(), '1 {"merge":{"b":1}}\n2 {"merge":{"b":2}}\n3 {"merge":{"b":null}}')
        self.assertEqual((following.render(), following.stamp), ('{"a":[1,2]}', "aa:3"))

    async def test_bytes_come_as_they_are_and_are_not_rendered(self) -> None:
        _, peer, following = await self.following()
        peer.event(0x200, "whole", stamp="aa:0", kind="bytes", bytes=2)
        peer.say(PART, 0x200, b"\0\xff")
        self.assertEqual(((await anext(following)).document, following.render()), (b"\0\xff", ""))

    async def test_checks_cost_credit_that_is_given_back(self) -> None:
        """L5.1, L5.2: an owner that says nothing else ends nobody's session."""
        _, peer, following = await self.following()
        reading = asyncio.ensure_future(anext(following))
        for _ in range(1024):
            peer.event(0x200, "checked", stamp="aa:7")
        given = 0
        while given < 65_536:
            kind, number, body = await peer.frame(credit=True)
            self.assertEqual((kind, number), (CREDIT, 0x200))
            given += int.from_bytes(body, "big")
        self.assertEqual((given, following.stamp), (65_536, "aa:7"))
        await self.cancel(reading)

    async def test_leaving_unfollows_once(self) -> None:
        node, peer, following = await self.following()
        async with following:
            pass
        await following.close()
        self.assertEqual(await peer.answer("context_unfollow"), {"following": 0x200})
        asking = asyncio.ensure_future(node.stats())
        self.assertEqual((await peer.frame())[0], REQUEST)
        await self.cancel(asking)
        await self.assert_code("closed_here", anext(following))

    async def test_parts_that_do_not_fit_are_an_error(self) -> None:
        _, peer, following = await self.following()
        peer.event(0x200, "whole", stamp="aa:0", kind="text", bytes=3)
        peer.say(PART, 0x200, b"four")
        await self.assert_code("protocol", anext(following))
