"""The keyring, as the daemon would read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rankd.auth import Keyring, default_directory
from rankd.doctor.finding import Finding, ok, problem
from rankd_client.keys import KeyFileError

REPAIR = "make it again: `rankd keys revoke NAME`, then `rankd keys new NAME`"


def check_keys(directory: Path | None) -> Iterator[Finding]:
    """`directory` None: the user's own, which need not be there."""
    keyring = Keyring(directory or default_directory())
    if not keyring.exists:
        text = f"no keyring in {keyring.directory}"
        if directory is None:
            yield ok("keys", f"{text}: TCP asks nobody for a key, and stays on loopback")
        else:
            yield problem("keys", text, "make one: `rankd keys new NAME --keys DIR`")
        return
    try:
        keyring.server()
        names = keyring.names()
        if (keyring.directory / "http.token").exists():  # asking for one that is missing would make it
            keyring.http_token()
    except KeyFileError as error:
        yield problem("keys", str(error), "the daemon does not start with it: mend the file, its owner or its mode")
        return
    yield ok("keys", f"{keyring.directory}: {len(names)} keys are authorized")
    for name in names:
        try:
            keyring.grant(name)
        except KeyFileError as error:
            yield problem("keys", f"{error}; this key lets nobody in", REPAIR)
