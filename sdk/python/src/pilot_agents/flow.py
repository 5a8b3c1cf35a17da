"""Credit (local-protocol.md §5): what may be sent, what has arrived, and how far the peer has read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from . import frames
from .errors import PilotError, violation
from .frames import Kind

if TYPE_CHECKING:
    from .session import Session

T = TypeVar("T")

# What is owed is given back when it is this part of a flow's credit. L5.2 wants it before a half; smaller parts cost more frames.
GIVE_PART: Final = 4


class Outbound:
    """The sending side of a flow: what is sent waits until both the flow and the session have credit for it (L5.1, L5.3)."""

    def __init__(self, session: Session, id: int) -> None:
        self._session = session
        self._id = id
        self._beginning = self._left = session.limits.flow_credit_bytes
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self.ended: PilotError | None = None

    async def send(self, kind: Kind, body: bytes) -> None:
        """Sends one frame, in the order of the calls. Cancelled, it has sent nothing."""
        cost = len(body) + self._session.limits.frame_overhead_bytes
        async with self._turn:
            while self.ended is None and self._left < cost:
                self._changed.clear()
                await self._changed.wait()
            async with self._session.room(cost):
                if self.ended is not None:
                    raise self.ended.again()
                self._left -= cost
                self._session.spend(cost)
                self._session.write(frames.encode(kind, self._id, body))

    async def finish(self) -> None:
        """Sends FINISH behind all else. Cancelled, it has not."""
        async with self._turn, self._session.room(0):
            if self.ended is not None:
                raise self.ended.again()
            self.ended = PilotError("closed_here", "the stream is finished")
            self._session.write(frames.encode(Kind.FINISH, self._id))

    def on_credit(self, given: int) -> None:
        if self._left + given > self._beginning:
            raise violation(f"credit of {given} bytes, and {self._beginning - self._left} are owed")
        self._left += given
        self._changed.set()

    async def over(self) -> None:
        """Waits until nothing can be sent any more."""
        while self.ended is None:
            self._changed.clear()
            await self._changed.wait()

    def end(self, error: PilotError) -> None:
        """Whoever waits, and whoever comes later, gets this error; the first stays."""
        self.ended = self.ended or error
        self._changed.set()


class Inbox(Generic[T]):
    """What has arrived and was not read. The credit bounds it: what was read is given back, and only then more may come."""

    def __init__(self, credit: int = 0, give: Callable[[int], None] | None = None) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._changed = asyncio.Event()
        self._left = credit
        self._owed = 0
        self._give_at = credit // GIVE_PART
        self._give = give
        self._over = False
        self._error: PilotError | None = None

    async def get(self) -> T | None:
        """The next, or None at a clean end. What came before an end comes first. Cancelled, it has taken nothing."""
        while not self._items:
            if self._error is not None:
                raise self._error.again()
            if self._over:
                return None
            self._changed.clear()
            await self._changed.wait()
        item, cost = self._items.popleft()
        self._owed += cost
        if self._give is not None and self._owed >= self._give_at and not self._over:
            self._left += self._owed
            self._give(self._owed)
            self._owed = 0
        return item

    def put(self, item: T, cost: int = 0) -> None:
        if self._over:
            return
        if cost > self._left:
            raise violation(f"{cost} bytes where there was credit for {self._left}")
        self._left -= cost
        self._items.append((item, cost))
        self._changed.set()

    def end(self, error: PilotError | None) -> None:
        """Nothing comes any more: because of this error, or cleanly. The first end stays."""
        if not self._over:
            self._over, self._error = True, error
        self._changed.set()

    @property
    def has_items(self) -> bool:
        """Whether `get` gives one without waiting."""
        return bool(self._items)

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more. What came before may wait to be read."""
        return self._over

    def remove(self, item: T) -> None:
        self._items = deque(kept for kept in self._items if kept[0] is not item)

    def clear(self) -> None:
        self._items.clear()

    def drop_oldest(self) -> None:
        self._items.popleft()

    def __len__(self) -> int:
        return len(self._items)


class Progress:
    """How much of what was sent the peer's application has read (`consumed`, L4.2)."""

    def __init__(self) -> None:
        self.value = 0
        self._changed = asyncio.Event()
        self._error: PilotError | None = None

    async def reach(self, value: int) -> None:
        """Waits until it is at least so much. Raises the error, if it never will be."""
        while self.value < value:
            if self._error is not None:
                raise self._error.again(self.value)
            self._changed.clear()
            await self._changed.wait()

    def on_consumed(self, value: int) -> None:
        self.value = max(self.value, value)
        self._changed.set()

    def end(self, error: PilotError) -> None:
        self._error = self._error or error
        self._changed.set()
