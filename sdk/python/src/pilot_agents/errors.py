"""What goes wrong, in one exception: a code for programs, words and a hint for people."""

from __future__ import annotations

from typing import Final

# By code, what whoever reads the error can do. Codes that have none say all in their words.
_HINTS: Final = {
    "no_node": "is `pilot up` running, and is this its socket? Name it in attach() or in PILOT_SOCKET",
    "shutting_down": "attach again, or attach with reconnect=True",
    "not_allowed": "the node's configuration says which users may use which ports and contexts",
    "unknown_peer": "peers() lists the names that the node knows",
    "no_endpoint": "give the peer an endpoint in the node's configuration, or wait until it calls",
    "port_in_use": "listen(0) takes any free port",
    "version": "install the version of pilot-agents that belongs to the node",
    "slow": "read more often, or in a task of its own",
    "timed_out": "peers() says whether the tunnel is up",
}


class PilotError(Exception):
    """An operation that was not done, or what it was done on is over.

    code: one of local-protocol.md L6.1, or `no_node`: nobody is at the socket. A session that ends is `shutting_down`, whatever
        ended the node; a stream that the peer gave up is `closed`, with the peer's code.
    words: what happened, for people; they change from version to version.
    peer_code: the number that the peer, or its application, gave.
    consumed: how many messages (or bytes, of a stream) the peer's application is known to have read.
    """

    def __init__(self, code: str, words: str, *, peer_code: int | None = None, consumed: int | None = None) -> None:
        super().__init__(code, words)
        self.code = code
        self.words = words
        self.peer_code = peer_code
        self.consumed = consumed

    @property
    def hint(self) -> str | None:
        """What can be done about it, where that is known."""
        return _HINTS.get(self.code)

    def again(self, consumed: int | None = None) -> PilotError:
        """The same error for another caller: an exception that is raised twice would collect both tracebacks."""
        known = self.consumed if consumed is None else consumed
        return PilotError(self.code, self.words, peer_code=self.peer_code, consumed=known)

    def __str__(self) -> str:
        peer = "" if self.peer_code is None else f", code {self.peer_code} of the peer"
        hint = "" if self.hint is None else f" ({self.hint})"
        return f"{self.words} [{self.code}{peer}]{hint}"


def violation(words: str) -> PilotError:
    """The node broke the local protocol: the session cannot go on."""
    return PilotError("protocol", f"the node broke the local protocol: {words}")
