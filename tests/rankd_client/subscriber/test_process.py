"""Subscriptions in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from publisher import TIMEOUT


def script(code: str, tmp_path: Path) -> subprocess.Popen[str]:
    prelude = f"import rankd_client.subscriber as s, sys\nurl = 'ipc://{tmp_path}'\n"
    # Where the tests run in the background, an ignored SIGINT is inherited.
    prelude += "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-W", "error", "-c", prelude + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_subscribing_needs_no_torch(tmp_path: Path) -> None:
    code = "sys.modules['torch'] = sys.modules['numpy'] = None\nprint(list(s.subscribe(url, timeout=0)))"
    process = script(code, tmp_path)
    assert process.communicate(timeout=TIMEOUT) == ("[]\n", "")


def test_open_subscription_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    process = script("kept = s.subscribe(url)\nprint('end')", tmp_path)
    assert process.communicate(timeout=TIMEOUT) == ("end\n", "")
    assert process.returncode == 0


def test_ctrl_c_interrupts_the_wait(tmp_path: Path) -> None:
    code = "try:\n    with s.subscribe(url) as kept:\n        print('waiting', flush=True)\n        next(kept)\n"
    process = script(code + "except KeyboardInterrupt:\n    print('interrupted')", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=TIMEOUT) == ("interrupted\n", "")
