"""Requests and responses with deadlines, a stream for each (local-protocol.md §7)."""

from __future__ import annotations

import asyncio
import logging
import math
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from .errors import PilotError
from .stream import Stream

if TYPE_CHECKING:
    from .connection import Connection

# Bytes of a request or response unless told otherwise. Lower: documents do not fit; higher: a peer can make the application
# hold more.
CALL_BYTES: Final = 16 << 20
# Calls that are answered at the same time. Lower: one that waits holds more others up; higher: more memory for a peer's requests.
AT_ONCE: Final = 128

_DONE: Final = b"\x00"
_FAILED: Final = b"\x01"
# Codes of a stream that its caller gave up, and of one that will not be answered (L7.2).
_GIVEN_UP: Final = 1
_DECLINED: Final = 2
_MILLISECONDS: Final = struct.Struct(">I")
_MOST_MILLISECONDS: Final = (1 << 32) - 1


async def call(connection: Connection, request: bytes, timeout: float | None, most: int) -> bytes:
    """L7.1, from the caller."""
    milliseconds = 0 if timeout is None else min(max(1, math.ceil(timeout * 1000)), _MOST_MILLISECONDS)

    async def exchange() -> bytes:
        stream = await connection.open_stream()
        try:
            await stream.write(_MILLISECONDS.pack(milliseconds) + request)
            await stream.finish()
            return await stream.read_all(1 + most)
        finally:
            # L7.2. What is over already is not given up by this.
            stream.reset(_GIVEN_UP)
            stream.stop(_GIVEN_UP)

    try:
        answer = await asyncio.wait_for(exchange(), timeout)
    except asyncio.TimeoutError:
        raise PilotError("timed_out", f"{connection.peer} did not answer the call in {timeout:g} s") from None
    if answer[:1] == _DONE:
        return answer[1:]
    if answer[:1] == _FAILED:
        raise PilotError("refused", answer[1:].decode(errors="replace"))
    raise PilotError("protocol", f"{connection.peer} answered the call with what is no response")


async def serve(connection: Connection, answer: Callable[[bytes], Awaitable[bytes]], at_once: int, most: int) -> None:
    """L7.1, from the other end, for every stream that the peer opens."""
    room = asyncio.Semaphore(at_once)
    tasks: set[asyncio.Task[None]] = set()

    def on_done(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        room.release()

    try:
        while True:
            await room.acquire()
            stream = await connection.accept_stream()
            task = asyncio.get_running_loop().create_task(_answer(stream, answer, most))
            tasks.add(task)
            task.add_done_callback(on_done)
    except PilotError as error:
        if error.code != "closed" or error.peer_code != 0:
            raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(stream: Stream, answer: Callable[[bytes], Awaitable[bytes]], most: int) -> None:
    """One call. What goes wrong with its stream is the caller's business, who gets the same news."""
    try:
        whole = await stream.read_all(_MILLISECONDS.size + most)
        if len(whole) < _MILLISECONDS.size:
            return
        (milliseconds,) = _MILLISECONDS.unpack_from(whole)
        response = await _unless_given_up(stream, _worded(answer, whole[_MILLISECONDS.size :]), milliseconds / 1000 or None)
        if response is not None:
            await stream.write(response)
            await stream.finish()
    except PilotError:
        pass
    finally:
        # What is over already is not declined by this.
        stream.reset(_DECLINED)
        stream.stop(_DECLINED)


async def _unless_given_up(stream: Stream, work: Awaitable[bytes], timeout: float | None) -> bytes | None:
    """What the work gives; cancels it when the caller gives up, or its time has passed."""
    working = asyncio.ensure_future(work)
    given_up = asyncio.ensure_future(stream.stopped())
    try:
        await asyncio.wait({working, given_up}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        given_up.cancel()
        await asyncio.gather(working, given_up, return_exceptions=True)


async def _worded(answer: Callable[[bytes], Awaitable[bytes]], request: bytes) -> bytes:
    """The response with its status. A peer is told the words of a PilotError, and of no other exception."""
    try:
        return _DONE + await answer(request)
    except PilotError as error:
        return _FAILED + error.words.encode()
    except Exception:
        logging.getLogger("pilot_agents").exception("a call was not answered")
        return _FAILED + b"the application failed"
