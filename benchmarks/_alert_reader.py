"""A subscriber process: appends each alert to a file as a JSON line, until SIGTERM. Run by kills.py.

    python benchmarks/_alert_reader.py URL FILE [PLACE]

With PLACE, a file that keeps its place, it goes on where a former process with the same file was.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from rankd_client import subscribe


def end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def end_with_parent() -> None:
    sys.stdin.read()
    signal.raise_signal(signal.SIGTERM)


def main() -> None:
    url, path, *place = sys.argv[1:]
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=end_with_parent, daemon=True).start()
    more: dict[str, Any] = {"since_last": place[0]} if place else {}
    with Path(path).open("a", buffering=1) as file, subscribe(url, **more) as alerts:
        for alert in alerts:
            file.write(json.dumps(alert) + "\n")


if __name__ == "__main__":
    main()
