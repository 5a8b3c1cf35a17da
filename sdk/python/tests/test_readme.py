"""The program of the README, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from .scripted import MESSAGE, SECONDS, ScriptedCase

README = Path(__file__).parent.parent / "README.md"


class Readme(ScriptedCase):
    async def test_the_program_sends_a_delta_and_prints_the_answer(self) -> None:
        program, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        self.assertLessEqual(len(program.splitlines()), 10)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, env={**os.environ, "PILOT_SOCKET": self.path}, stdout=asyncio.subprocess.PIPE
        )
        peer = await self.session()
        self.assertEqual(await peer.answer("connect", connection=0x200), {"peer": "b", "port": 7000})
        self.assertEqual(await peer.frame(), (MESSAGE, 0x200, b"anomalies: 47 -> 48"))
        peer.say(MESSAGE, 0x200, b"noted")
        self.assertEqual((await peer.answer("close"))["connection"], 0x200)
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
        self.assertEqual((process.returncode, output), (0, b"noted\n"))
