"""Pilot for agents: connections, streams and shared contexts of the node on this host, in asyncio.

Everything begins with `Node.attach`. What opens something (`attach`, `connect`, `listen`, `open_stream`, `subscribe`, `follow`)
is either awaited, or used in `async with`, which closes it. Errors are `PilotError`.
"""

from .connection import Connection
from .context import Context, Following, Update
from .errors import PilotError
from .listener import Listener
from .node import Event, Events, Node, Peer
from .stream import Stream

__all__ = [
    "Connection",
    "Context",
    "Event",
    "Events",
    "Following",
    "Listener",
    "Node",
    "Peer",
    "PilotError",
    "Stream",
    "Update",
]
