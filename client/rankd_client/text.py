"""Text of others, made safe for a terminal: names and messages come over the network, with any character in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_CHARS = 1_000
"""Far above an honest message; a hostile one still ends."""


def escape(text: object, max_chars: int = MAX_CHARS) -> str:
    """`text` in one line, with whatever is not printable (C0 and C1 controls, DEL, line separators, bidirectional
    overrides, surrogates) as \\x1b, \\u202e or \\U000e0001. At most `max_chars` of its characters are shown, then "…".

    Not a string: numbers as they are, None as "-", anything else by its type's name, as nothing of it can be trusted.
    """
    if text is None:
        return "-"
    if isinstance(text, int) and text.bit_length() > 64:
        return "<int>"  # Python itself refuses to write one of thousands of digits
    if not isinstance(text, str):
        return str(text) if type(text) in (int, float, bool) else f"<{type(text).__name__}>"
    shown = text[:max_chars]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else _escaped(ord(char)) for char in shown)
    return shown + "…" if len(text) > max_chars else shown


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def alert_line(alert: Mapping[str, Any]) -> str:
    """One line for a terminal: `WARNING lm-42 step 1200 blocks.1.mlp.up: effective_rank fell 14 % (23.1 → 19.9)`.

    A state other than firing follows the severity. Every key may be missing, and every value may be anything.
    """
    words = [escape(alert.get("severity", "alert"), 20).upper()]
    if (state := alert.get("state", "firing")) != "firing":
        words.append(escape(state, 20))
    words.append(escape(alert.get("run"), 256))
    if (step := alert.get("step")) is not None:
        words.append(f"step {escape(step, 20)}")
    if (subject := _subject(alert)) is not None:
        words.append(subject)
    return f"{' '.join(words)}: {_message(alert)}"


def _subject(alert: Mapping[str, Any]) -> str | None:
    """The layer, or for an alert of a whole run the first of those that it lists, if any."""
    layer, layers = alert.get("layer"), alert.get("layers")
    if layer is not None:
        return escape(layer, 256) + _of_role(alert)
    if not isinstance(layers, list | tuple) or not layers:
        return None
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return ", ".join(escape(name, 256) for name in layers[:3]) + more


def _of_role(alert: Mapping[str, Any]) -> str:
    """Of an alert that is not about weights."""
    role = alert.get("role")
    return f" ({escape(role, 20)})" if isinstance(role, str) and role != "weight" else ""


def _message(alert: Mapping[str, Any]) -> str:
    message, layer = alert.get("message"), alert.get("layer")
    if isinstance(message, str) and isinstance(layer, str):
        message = message.removeprefix(f"{layer}{_of_role(alert)}: ")  # the line has named it already
    if message:
        return escape(message)
    rule, metric = escape(alert.get("rule"), 100), alert.get("metric")
    if metric is None:
        return rule
    return f"{rule}, {escape(metric, 100)} {_number(alert.get('baseline'))} → {_number(alert.get('value'))}"


def _number(value: object) -> str:
    return f"{value:.4g}" if type(value) is float else escape(value, 20)
