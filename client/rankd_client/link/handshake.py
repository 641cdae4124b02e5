"""Which hello is said: that of the newest version, and to a daemon that does not know it, of the one that is needed."""

from __future__ import annotations

from dataclasses import replace

from rankd_client.wire import PROTOCOL_VERSION, Hello

TOO_OLD = 'it is older than copies with scales: update it, or push with dtype="bfloat16"'


class Handshake:
    """`hello` has the version that is needed at least, `newest` is the one to be tried first."""

    def __init__(self, hello: Hello, newest: int) -> None:
        self._needed = hello.version
        self._newest = max(newest, hello.version)
        self.hello = replace(hello, version=self._newest)
        """The one to say now."""

    def begin(self) -> None:
        """Another daemon may be there: try the newest."""
        self.hello = replace(self.hello, version=self._newest)

    def fall_back(self) -> bool:
        """The daemon does not know the version; False if there is no lower one to be said."""
        if self.hello.version == self._needed:
            return False
        self.hello = replace(self.hello, version=self._needed)
        return True

    @property
    def advice(self) -> str:
        """To the user, where not even the version that is needed was known."""
        return f"; {TOO_OLD}" if self._needed > PROTOCOL_VERSION else ""
