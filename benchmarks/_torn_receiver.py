"""The receiving end of benchmarks/torn.py, a process of its own: a daemon without what comes behind the mailbox.

    python benchmarks/_torn_receiver.py URL TABLE

Each snapshot is not measured but compared with TABLE, a JSON file of layer → checksums of its bytes, one for each step
of a period. Prints `ready` when it takes pushes; lives until its stdin ends, and then prints what it saw, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from rankd.config import serve_config
from rankd.daemon import Daemon
from rankd_client.wire import Ack


class Checker(Daemon):
    """A daemon that measures nothing. `seen` counts snapshots that are `whole`, that are whole but those of `another`
    step, and that are `torn`: those of no step."""

    table: dict[str, list[int]]

    async def analysis(self) -> None:
        self.seen: Counter[str] = Counter()
        while (snapshot := await self.mailbox.get()) is not None:
            checksums, checksum = self.table[snapshot.layer], zlib.crc32(snapshot.data)
            whole = checksum == checksums[snapshot.step % len(checksums)]
            self.seen["whole" if whole else "another" if checksum in checksums else "torn"] += 1
            done = Ack("recorded", snapshot.layer, snapshot.step, snapshot.role)
            self.receive.acknowledge(self.assemble.settle((*snapshot.key, snapshot.step)), done)
            self.mailbox.done(snapshot)


async def serve(url: str, table: dict[str, list[int]]) -> None:
    settings: dict[str, Any] = {"url": url, "http": "off", "device": "cpu", "while_stdin": True}
    daemon = Checker(serve_config(settings))
    daemon.table = table
    await daemon.run(announce=lambda ready: print("ready", flush=True))
    print(json.dumps(daemon.seen), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))
