"""The light client of rankd: ships weight snapshots out of a training loop and follows the warnings.

Names are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankd_client.client import Client
    from rankd_client.receipt import PushReceipt
    from rankd_client.sink import on_alert
    from rankd_client.subscriber import asubscribe, subscribe
    from rankd_client.watch import Adapter, MegatronAdapter, Place

__all__ = ["Adapter", "Client", "MegatronAdapter", "Place", "PushReceipt", "asubscribe", "on_alert", "subscribe"]

_HOMES = {
    "Adapter": "watch",
    "Client": "client",
    "MegatronAdapter": "watch",
    "Place": "watch",
    "PushReceipt": "receipt",
    "asubscribe": "subscriber",
    "on_alert": "sink",
    "subscribe": "subscriber",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
