"""Documents of shared contexts, and what a change makes of them (context.md §4).

Nothing here changes a document in place: what is given out stays as it was, and a new version shares with the old what did not
change.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, Literal

from .errors import PilotError
from .frames import Json

Kind = Literal["json", "text", "log", "bytes"]


class _Absent:
    """No value, where null is one."""


_ABSENT = _Absent()


def decode(kind: Kind, given: bytes) -> Any:
    """A document as the node sends it whole (context.md C1.2)."""
    try:
        if kind == "json":
            return json.loads(given)
        return given.decode() if kind in ("text", "log") else given
    except (ValueError, RecursionError) as error:
        raise _unfit(f"the document is no {kind}: {error}") from None


def encode(document: Any) -> Any:
    """A document, or a part of one, as a member of a request."""
    return base64.b64encode(document).decode() if isinstance(document, bytes | bytearray | memoryview) else document


def render(kind: Kind, document: Any) -> str:
    """As a language model reads it; nothing of bytes."""
    if kind == "json":
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return document if isinstance(document, str) else ""


def apply(kind: Kind, document: Any, change: Json) -> Any:
    """The document after a change."""
    if len(change) != 1:
        raise _unfit(f"a change has one member, and this one {sorted(change)}")
    ((operation, operand),) = change.items()
    try:
        if operation == "replace":
            return _binary(operand) if kind == "bytes" else operand
        if operation == "append":
            return document + (_binary(operand) if kind == "bytes" else operand)
        if operation == "edit" and kind == "text":
            # Offsets count bytes of UTF-8 (C4.2).
            return _splice(document.encode(), operand["offset"], operand["removed"], operand["inserted"].encode()).decode()
        if operation == "write" and kind == "bytes":
            written = _binary(operand["bytes"])
            # What lies beyond the end is appended.
            overwritten = min(len(written), len(document) - operand["offset"])
            return _splice(document, operand["offset"], overwritten, written)
        if operation == "merge" and kind == "json":
            return merge(document, operand)
        if operation == "patch" and kind == "json":
            return patch(document, operand)
        if operation == "values" and kind == "json":
            for pointer, *value in operand:
                document = _set_value(document, _tokens(pointer), value[0] if value else _ABSENT)
            return document
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unfit(f"{operation}: {error!r}") from None
    raise _unfit(f"{operation!r} is no change of a document of kind {kind}")


def merge(target: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def patch(document: Any, operations: list[Json]) -> Any:
    """RFC 6902."""
    for operation in operations:
        name, path = operation["op"], _tokens(operation["path"])
        if name == "add":
            document = _at(document, path, _inserting(operation["value"]))
        elif name == "remove":
            document = _at(document, path, _remove)
        elif name == "replace":
            document = _at(document, path, _replacing(operation["value"]))
        elif name == "copy":
            document = _at(document, path, _inserting(_get(document, _tokens(operation["from"]))))
        elif name == "move":
            source = _tokens(operation["from"])
            if path[: len(source)] == source and path != source:
                raise ValueError("a value cannot be moved into itself")
            value = _get(document, source)
            document = _at(_at(document, source, _remove), path, _inserting(value))
        elif name == "test":
            if not _same(_get(document, path), operation["value"]):
                raise ValueError(f"{operation['path']!r} has another value")
        else:
            raise ValueError(f"no such operation: {name!r}")
    return document


# What a container is after an edit of the member under a key. Both are None where the document as a whole is meant.
_Edit = Callable[[Any, Any], Any]


def _inserting(value: Any) -> _Edit:
    return lambda at, key: _insert(at, key, value)


def _replacing(value: Any) -> _Edit:
    return lambda at, key: _replace(at, key, value)


def _at(document: Any, path: list[str], edit: _Edit) -> Any:
    """The document with an edit at a path, copied along the path alone."""
    if not path:
        return edit(None, None)
    if len(path) == 1:
        return edit(document, path[0])
    key = _key(document, path[0])
    return _replace(document, key, _at(document[key], path[1:], edit))


def _insert(at: Any, key: Any, value: Any) -> Any:
    if at is None and key is None:
        return value
    if isinstance(at, list):
        index = len(at) if key == "-" else _index(key, len(at) + 1)
        return [*at[:index], value, *at[index:]]
    return {**_object(at), key: value}


def _replace(at: Any, key: Any, value: Any) -> Any:
    if at is None and key is None:
        return value
    key = _key(at, key)
    if isinstance(at, list):
        return [*at[:key], value, *at[key + 1 :]]
    return {**at, key: value}


def _remove(at: Any, key: Any) -> Any:
    if at is None and key is None:
        return None
    key = _key(at, key)
    if isinstance(at, list):
        return [*at[:key], *at[key + 1 :]]
    return {name: value for name, value in at.items() if name != key}


def _set_value(document: Any, path: list[str], value: Any) -> Any:
    """C4.4: what is on the way and is no object becomes one."""
    if not path:
        return None if value is _ABSENT else value
    members = dict(document) if isinstance(document, dict) else {}
    if len(path) == 1 and value is _ABSENT:
        members.pop(path[0], None)
    else:
        members[path[0]] = _set_value(members.get(path[0]), path[1:], value)
    return members


def _get(document: Any, path: list[str]) -> Any:
    for token in path:
        document = document[_key(document, token)]
    return document


def _key(at: Any, token: Any) -> Any:
    """Of a member that is there."""
    if isinstance(at, list):
        return _index(token, len(at))
    if token not in _object(at):
        raise ValueError(f"there is no {token!r}")
    return token


def _index(token: Any, end: int) -> int:
    if isinstance(token, int):
        return token
    if not (token.isascii() and token.isdigit()) or (token[0] == "0" and token != "0") or int(token) >= end:
        raise ValueError(f"{token!r} is no index below {end}")
    return int(token)


def _object(at: Any) -> dict[str, Any]:
    if not isinstance(at, dict):
        raise ValueError(f"{at!r} has no members")
    return at


def _tokens(pointer: str) -> list[str]:
    """RFC 6901."""
    if pointer and not pointer.startswith("/"):
        raise ValueError(f"{pointer!r} is no JSON pointer")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _same(a: Any, b: Any) -> bool:
    """As JSON: true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _splice(document: bytes, offset: int, removed: int, inserted: bytes) -> bytes:
    if offset < 0 or removed < 0 or offset + removed > len(document):
        raise ValueError(f"offset {offset}, {removed} bytes, in a document of {len(document)}")
    return document[:offset] + inserted + document[offset + removed :]


def _binary(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None


def _unfit(words: str) -> PilotError:
    return PilotError("context", f"the change does not fit the document: {words}")
