"""Frames of the local protocol (local-protocol.md §1): bytes to and from values, without I/O."""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from .errors import PilotError, violation

Json = dict[str, Any]
T = TypeVar("T")

VERSION: Final = 1
# Bytes behind the length: type and id, and at most a frame of 1 MiB (L1.1).
LEAST_BYTES: Final = 5
FRAME_BYTES: Final = 1_048_576

_HEAD: Final = struct.Struct(">IBI")
_U32: Final = struct.Struct(">I")
_OPEN: Final = struct.Struct(">IB")


class Kind(enum.IntEnum):
    REQUEST = 0x01
    RESULT = 0x02
    ERROR = 0x03
    EVENT = 0x04
    MESSAGE = 0x10
    DATAGRAM = 0x11
    DATA = 0x12
    FINISH = 0x13
    CREDIT = 0x14
    OPEN = 0x15
    PART = 0x16


class Frame(NamedTuple):
    kind: Kind
    id: int
    body: bytes


def encode(kind: Kind, id: int, body: bytes = b"") -> bytes:
    return _HEAD.pack(LEAST_BYTES + len(body), kind, id) + body


def request(id: int, op: str, members: Mapping[str, Any]) -> bytes:
    """A REQUEST. Members that are None are left out, but a document may be null."""
    given = {name: value for name, value in members.items() if value is not None or name == "document"}
    frame = encode(Kind.REQUEST, id, json.dumps({"op": op, **given}, separators=(",", ":")).encode())
    if len(frame) - 4 > FRAME_BYTES:
        raise PilotError("too_long", f"a request has at most {FRAME_BYTES} bytes, and {op} would have {len(frame) - 4}")
    return frame


def credit(id: int, given: int) -> bytes:
    return encode(Kind.CREDIT, id, _U32.pack(given))


def open_stream(id: int, connection: int, unidirectional: bool) -> bytes:
    return encode(Kind.OPEN, id, _OPEN.pack(connection, int(unidirectional)))


def credit_of(body: bytes) -> int:
    if len(body) != _U32.size:
        raise violation(f"CREDIT with {len(body)} bytes")
    return int(_U32.unpack(body)[0])


def json_of(body: bytes) -> Json:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise violation(f"a body that is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise violation("a body that is no JSON object")
    return value


def member(body: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A member that must be there, and of this type."""
    value = body.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise violation(f"{name!r} is {value!r}, and should be of type {kind.__name__}")
    return value


def count(body: Mapping[str, Any], name: str) -> int:
    """A member that is a number from 0."""
    value = member(body, name, int)
    if value < 0:
        raise violation(f"{name!r} is {value}")
    return value


def error_of(body: Mapping[str, Any]) -> PilotError:
    """The error in an ERROR, `closed` or `ended`."""
    peer_code = None if body.get("peer_code") is None else member(body, "peer_code", int)
    return PilotError(member(body, "code", str), member(body, "words", str), peer_code=peer_code)


class Decoder:
    """Frames out of whatever pieces the socket gives. It holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Raises PilotError at the first that cannot be read."""
        self._rest += data
        at = 0
        try:
            while len(self._rest) - at >= 4:
                (length,) = _U32.unpack_from(self._rest, at)
                if not LEAST_BYTES <= length <= FRAME_BYTES:
                    raise violation(f"a frame of {length} bytes")
                if len(self._rest) - at < 4 + length:
                    return
                _, kind, id = _HEAD.unpack_from(self._rest, at)
                try:
                    frame = Frame(Kind(kind), id, bytes(self._rest[at + _HEAD.size : at + 4 + length]))
                except ValueError:
                    raise violation(f"a frame of type {kind:#04x}") from None
                at += 4 + length
                yield frame
        finally:
            del self._rest[:at]
