"""The sender's node is killed under load: `killed.py SOCKET_OF_A SOCKET_OF_B`, run by tests/tests/nodes/python.rs.

It says `sending` when a's node is to be killed and started again, and at the end how it went.
"""

from __future__ import annotations

import asyncio
import sys

from pilot_agents import Connection, Listener, Node, PilotError

PORT = 7000


async def read(connection: Connection) -> list[int]:
    """What arrives until the connection is over, however it ends."""
    received = []
    try:
        async for message in connection:
            received.append(int(message))
    except PilotError as error:
        if error.code not in ("peer_restarted", "timed_out", "closed"):
            raise
    return received


async def accept(listener: Listener) -> asyncio.Task[list[int]]:
    return asyncio.ensure_future(read(await listener.accept()))


async def main(socket_of_a: str, socket_of_b: str) -> None:
    async with Node.attach(socket_of_a, reconnect=True) as a, Node.attach(socket_of_b) as b, b.listen(PORT) as listener:
        connection, reading = await asyncio.gather(a.connect("b", PORT), accept(listener))
        sent = 0
        try:
            while True:
                await connection.send(b"%d" % sent)
                sent += 1
                if sent == 1000:
                    print("sending", flush=True)
                if sent % 100 == 0:
                    await asyncio.sleep(0.01)
        except PilotError as error:
            if error.code != "shutting_down":
                raise
            consumed = error.consumed or 0
        # One that waits for the node to come back.
        again, reading_again = await asyncio.gather(a.connect("b", PORT), accept(listener))
        for number in range(consumed, sent):
            await again.send(b"%d" % number)
        await again.consumed(sent - consumed)
        await again.close()
        first, second = await asyncio.gather(reading, reading_again)
        assert 0 < consumed <= sent, (consumed, sent)
        assert first == list(range(len(first))), "in order, each once"
        assert len(first) >= consumed, (len(first), consumed)
        assert second == list(range(consumed, sent)), "all that was not consumed, each once"
        print("nothing that was consumed is missing", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
