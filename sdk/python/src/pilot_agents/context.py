"""Shared contexts: documents that one node holds and others follow, by deltas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from . import document as documents
from . import frames
from .document import Kind
from .errors import PilotError, violation
from .flow import Inbox
from .frames import Frame, Json
from .opening import Opening

if TYPE_CHECKING:
    from .node import Node
    from .session import Session

# Bytes of a document, or a change, as the node sends it. A document has 16 MiB (context.md C1.2), and JSON of it at most six
# times as many. Higher: a node that is wrong makes the application hold more.
UPDATE_BYTES: Final = 96 << 20


@dataclass(frozen=True)
class Update:
    """What a follower is given: the document whole, or a change and the document after it.

    stamp: the version, for `if_stamp`. change: the delta as the node sent it (local-protocol.md §3), None when it is whole.
    """

    name: Literal["whole", "changed"]
    stamp: str
    document: Any
    change: Json | None


class Context:
    """Made by `Node.context` and `Node.create_context`.

    Each change returns the stamp of the version that it made. With `if_stamp` it is made on that version, or else the error
    `context` with the owner's code 3 says that there is another. Cancelled, it may have been made.
    """

    def __init__(self, node: Node, name: str, peer: str | None) -> None:
        self.name = name
        self.peer = peer
        self._node = node

    async def replace(self, document: Any, *, if_stamp: str | None = None) -> str:
        """Another document. A string is text: for JSON that is a string, use `change`."""
        return await self.change({"replace": documents.encode(document), **_written_as(document, "text")}, if_stamp=if_stamp)

    async def merge(self, patch: Any, *, if_stamp: str | None = None) -> str:
        """JSON: members that are set, or null: removed (RFC 7396)."""
        return await self.change({"merge": patch}, if_stamp=if_stamp)

    async def patch(self, operations: list[Json], *, if_stamp: str | None = None) -> str:
        """JSON: operations one after the other (RFC 6902)."""
        return await self.change({"patch": operations}, if_stamp=if_stamp)

    async def append(self, data: str | bytes, *, if_stamp: str | None = None) -> str:
        """Text, logs and bytes: at the end."""
        return await self.change({"append": documents.encode(data), **_written_as(data, None)}, if_stamp=if_stamp)

    async def edit(self, offset: int, removed: int, inserted: str, *, if_stamp: str | None = None) -> str:
        """Text: so many bytes of UTF-8 at an offset in bytes give way to others."""
        edit = {"offset": offset, "removed": removed, "inserted": inserted}
        return await self.change({"edit": edit}, if_stamp=if_stamp)

    async def write(self, offset: int, data: bytes, *, if_stamp: str | None = None) -> str:
        """Bytes: over what is at an offset."""
        return await self.change({"write": {"offset": offset, "bytes": documents.encode(data)}}, if_stamp=if_stamp)

    async def delete(self) -> None:
        """Ends a context of this node: who follows it is told."""
        session = await self._node.session()
        await session.request("context_delete", lambda _: None, name=self.name)

    async def change(self, change: Json, *, if_stamp: str | None = None) -> str:
        """Any of these, as local-protocol.md §3 says it."""
        session = await self._node.session()
        return await session.request("context_change", _stamp, peer=self.peer, name=self.name, change=change, if_stamp=if_stamp)

    def follow(self, *, filter: str | None = None, latest: bool = False) -> Opening[Following]:
        """The document now, and then what changes.

        filter: a JSON pointer, to follow what is there. latest: who reads slowly is given the latest values, not every change.
        """

        async def follow() -> Following:
            following = Following(self, self._node, {"peer": self.peer, "name": self.name, "filter": filter, "latest": latest})
            await following.follow()
            return following

        return Opening(follow())

    async def create(self, document: Any, kind: Kind | None, read: list[str], write: list[str], durable: bool) -> str:
        session = await self._node.session()
        return await session.request(
            "context_create",
            _stamp,
            name=self.name,
            kind=kind or _kind_of(document),
            document=documents.encode(document),
            read=read,
            write=write,
            durable=durable,
        )


class Following:
    """Made by `Context.follow`: `async for update in following`, or `deltas`. With `reconnect`, it goes on with the whole
    document after the node was restarted. Cancelled, either has taken nothing."""

    def __init__(self, context: Context, node: Node, members: Json) -> None:
        self.context = context
        self.document: Any = None
        self.stamp: str | None = None
        self._node = node
        self._members = members
        self._kind: Kind = "json"
        self._inbox: Inbox[Json | bytes]
        self._head: Json | None = None
        self._parts = bytearray()
        self._leave: Callable[[], None]

    def __aiter__(self) -> Following:
        return self

    async def __anext__(self) -> Update:
        """The next update. What was read of it when it was cancelled is kept."""
        while True:
            try:
                return await self._next()
            except PilotError as error:
                if error.code != "shutting_down" or self._node.is_over:
                    raise
                await self.follow()

    def render(self) -> str:
        """The document as a language model reads it: JSON without spaces, or the text; nothing of bytes."""
        return documents.render(self._kind, self.document)

    async def deltas(self) -> str:
        """Waits for something new, and gives all there is of it as a language model reads it, behind `render`: a line for each
        change, with its version, or the document where it came whole."""
        lines = [self._line(await anext(self))]
        while self._inbox.has_items:
            if update := self._take(await self._inbox.get()):
                lines.append(self._line(update))
        return "\n".join(lines)

    async def close(self) -> None:
        """Follows no more."""
        self._leave()

    async def __aenter__(self) -> Following:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def follow(self) -> None:
        """In the node's session, from the beginning."""
        session = await self._node.session()

        def build(result: Json) -> _Route:
            return _Route(session, frames.count(result, "following"))

        route = await session.request("context_follow", build, _Route.leave, **self._members)
        self._inbox, self._leave = route.inbox, route.leave
        self._head = None
        self._parts.clear()

    async def _next(self) -> Update:
        while True:
            if update := self._take(await self._inbox.get()):
                return update

    def _take(self, item: Json | bytes | None) -> Update | None:
        """The update of which this is the last frame."""
        if isinstance(item, dict):
            if self._head is not None:
                raise violation("an update within another")
            name = frames.member(item, "event", str)
            if name == "checked":
                self.stamp = frames.member(item, "stamp", str)
            if name in ("checked", "diverged"):
                return None
            self._head = item
        if self._head is None:
            raise violation("a PART that belongs to no document and no change")
        if isinstance(item, bytes):
            self._parts += item
        wanted = frames.count(self._head, "bytes")
        if wanted > UPDATE_BYTES:
            raise violation(f"a document or change of {wanted} bytes")
        if len(self._parts) > wanted:
            raise violation(f"PARTs that are not the {wanted} bytes of what they are of")
        return self._update(self._head) if len(self._parts) == wanted else None

    def _update(self, head: Json) -> Update:
        change = None
        if frames.member(head, "event", str) == "whole":
            self._kind = cast(Kind, frames.member(head, "kind", str))
            self.document = documents.decode(self._kind, bytes(self._parts))
        else:
            change = frames.json_of(bytes(self._parts))
            self.document = documents.apply(self._kind, self.document, change)
        self.stamp = frames.member(head, "stamp", str)
        self._head = None
        self._parts.clear()
        return Update("whole" if change is None else "changed", self.stamp, self.document, change)

    def _line(self, update: Update) -> str:
        if update.change is None:
            return self.render()
        return f"{update.stamp.partition(':')[2]} {documents.render('json', update.change)}"


class _Route:
    """Where a session's frames for a following go."""

    def __init__(self, session: Session, id: int) -> None:
        self._session = session
        self._id = id
        self.inbox: Inbox[Json | bytes] = Inbox(
            session.limits.flow_credit_bytes, lambda owed: session.write(frames.credit(id, owed))
        )
        session.handlers[id] = self

    def leave(self) -> None:
        if self._session.handlers.get(self._id) is self:
            del self._session.handlers[self._id]
            self._session.later("context_unfollow", following=self._id)
        self.inbox.end(PilotError("closed_here", "the context is followed no more"))

    def on_frame(self, frame: Frame) -> None:
        if frame.kind is not frames.Kind.PART:
            raise violation(f"a frame {frame.kind.name} for a following")
        self.inbox.put(frame.body, len(frame.body) + self._session.limits.frame_overhead_bytes)

    def on_event(self, name: str, event: Json) -> None:
        # After `diverged` the node sends the document whole.
        if name in ("whole", "changed", "checked", "diverged"):
            self.inbox.put(event, self._session.limits.frame_overhead_bytes)
        elif name == "ended":
            self.inbox.end(frames.error_of(event))
            self._session.handlers.pop(self._id, None)

    def on_end(self, error: PilotError) -> None:
        self.inbox.end(error)


def _stamp(result: Json) -> str:
    return frames.member(result, "stamp", str)


def _written_as(document: Any, text: str | None) -> Json:
    """How the node is to read it, where that does not go without saying (local-protocol.md §3)."""
    if isinstance(document, bytes | bytearray | memoryview):
        return {"as": "base64"}
    return {"as": text} if isinstance(document, str) and text is not None else {}


def _kind_of(document: Any) -> Kind:
    if isinstance(document, bytes | bytearray | memoryview):
        return "bytes"
    return "text" if isinstance(document, str) else "json"
