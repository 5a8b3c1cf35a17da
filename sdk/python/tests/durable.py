"""A durable context whose node is killed: `durable.py SOCKET_OF_A SOCKET_OF_B`, run by tests/tests/nodes/python.rs.

It says `writing` when a's node is to be killed and started again, and at the end how it went.
"""

from __future__ import annotations

import asyncio
import sys

from pilot_agents import Context, Node, PilotError


async def write(log: Context) -> int:
    """Appends numbers until the node is gone: how many were confirmed."""
    number = 0
    try:
        while True:
            await log.append(f"{number};")
            number += 1
            if number == 20:
                print("writing", flush=True)
    except PilotError as error:
        if error.code != "shutting_down":
            raise
        return number


def count(document: str) -> int:
    numbers = document.split(";")[:-1]
    assert numbers == [str(number) for number in range(len(numbers))], document
    return len(numbers)


async def main(socket_of_a: str, socket_of_b: str) -> None:
    async with Node.attach(socket_of_a, reconnect=True) as a, Node.attach(socket_of_b) as b:
        log = await a.create_context("log", "", kind="log", read=["b"], durable=True)
        async with b.context("log", "a").follow() as copy:
            confirmed = await write(log)
            async with log.follow() as again:
                kept = count((await anext(again)).document)
            assert kept in (confirmed, confirmed + 1), (kept, confirmed)
            await log.append(f"{kept};")
            wholes = 0
            while copy.document is None or count(copy.document) <= kept:
                update = await anext(copy)
                wholes += update.change is None
            assert wholes <= 1, "the document once, and then changes, through both lives of its owner"
        print("nothing that was confirmed is missing", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
