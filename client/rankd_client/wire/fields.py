"""Checks of single header fields: each takes what msgpack gave and returns the value or raises WireError."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from rankd_client.wire.errors import WireError
from rankd_client.wire.limits import (
    BYTES_PER_ELEMENT,
    MAX_BODY_BYTES,
    MAX_BODY_DEPTH,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    MAX_PIECES,
)

Check = Callable[[str, Any], Any]
_HEX_DIGITS = frozenset("0123456789abcdef")
ROLES = ("weight", "update", "gradient", "feature")


def unpack_map(data: bytes | memoryview, limit: int, too_large: str) -> dict[str, Any]:
    """One msgpack map of at most `limit` bytes, nothing behind it. In it and in maps below, keys are strings and come
    once, and there are no extension types."""
    if len(data) > limit:
        raise WireError(too_large, f"{len(data)} bytes; at most {limit}")
    most = limit // BYTES_PER_ELEMENT
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
            max_ext_len=0,
            max_array_len=most,
            max_map_len=most,
        )
    except Exception as error:  # msgpack raises a dozen unrelated types for hostile bytes; all mean the same to us
        raise WireError("bad_header", f"not msgpack: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise WireError("bad_header", f"expected a map, got {type(value).__name__}")
    return value


def unpack_body(data: bytes | memoryview) -> dict[str, Any]:
    value = unpack_map(data, MAX_BODY_BYTES, "body_too_large")
    check_json(value)
    return value


def pack_map(value: Mapping[str, Any], limit: int = MAX_HEADER_BYTES) -> bytes:
    """Our own side of the same limit: a header that a peer would refuse is a ValueError here."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    if len(packed) > limit:
        raise ValueError(f"map of {len(packed)} bytes; the protocol allows {limit}")
    return packed


def take(header: Mapping[str, Any], key: str, check: Check, default: Any = ...) -> Any:
    """The checked value of `key`; `default` where it is absent, missing_field where there is none."""
    if key in header:
        return check(key, header[key])
    if default is ...:
        raise WireError("missing_field", f"{key!r}")
    return default


def integer(low: int, high: int) -> Check:
    def check(key: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise WireError("bad_field", f"{key}={show(value)}; expected an integer from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Check:
    def check(key: str, value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise WireError("bad_field", f"{key}={show(value)}; expected a number from {low} to {high}")
        return float(value)

    return check


def text(max_bytes: int) -> Check:
    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > max_bytes or len(encoded(value)) > max_bytes:
            raise WireError("bad_field", f"{key}={show(value)}; expected a string of at most {max_bytes} bytes")
        return value

    return check


def name(max_bytes: int) -> Check:
    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or not value or "\0" in value or len(encoded(value)) > max_bytes:
            raise WireError("bad_name", f"{key}={show(value)}; expected 1 to {max_bytes} UTF-8 bytes without NUL")
        return value

    return check


def binary(num_bytes: int) -> Check:
    def check(key: str, value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) != num_bytes:
            raise WireError("bad_field", f"{key}={show(value)}; expected {num_bytes} bytes")
        return value

    return check


def one_of(code: str, choices: tuple[str, ...]) -> Check:
    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise WireError(code, f"{key}={show(value)}; expected one of {', '.join(choices)}")
        return value

    return check


def optional(check: Check) -> Check:
    return lambda key, value: None if value is None else check(key, value)


def boolean(key: str, value: Any) -> bool:
    if type(value) is not bool:
        raise WireError("bad_field", f"{key}={show(value)}; expected true or false")
    return value


def mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError("bad_field", f"{key}={show(value)}; expected a map")
    return value


def body(key: str, value: Any) -> dict[str, Any]:
    """A map that can be written as JSON."""
    check_json(mapping(key, value))
    return value  # type: ignore[no-any-return]


def check_json(value: Any, levels: int = MAX_BODY_DEPTH) -> None:
    """Raise bad_body unless `value` is of what JSON has, in at most `levels` lists and maps."""
    if isinstance(value, dict | list | tuple):
        if not levels:
            raise WireError("bad_body", f"more than {MAX_BODY_DEPTH} lists and maps inside one another")
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise WireError("bad_body", "a key that is no string")
        for child in value.values() if isinstance(value, dict) else value:
            check_json(child, levels - 1)
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        raise WireError("bad_body", f"{show(value)}; expected a JSON value")


def stream_id(key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) != 16 or not _HEX_DIGITS.issuperset(value):
        raise WireError("bad_field", f"{key}={show(value)}; expected 16 lower-case hexadecimal digits")
    return value


def file_name(key: str, value: Any) -> str:
    """A bare name in a directory that the reader knows, or "": a path would lead a client anywhere."""
    if not isinstance(value, str) or len(encoded(value)) > 64 or "/" in value or "\0" in value or value in (".", ".."):
        raise WireError("bad_field", f"{key}={show(value)}; expected a file's name of at most 64 bytes")
    return value


def shape(key: str, value: Any) -> tuple[int, ...]:
    ok = isinstance(value, list) and 2 <= len(value) <= MAX_DIMENSIONS
    ok = ok and all(type(n) is int and 1 <= n <= MAX_ELEMENTS for n in value) and math.prod(value) < MAX_ELEMENTS
    if not ok:
        raise WireError("bad_shape", f"{key}={show(value)}; expected 2 to {MAX_DIMENSIONS} dimensions of at least 1")
    return tuple(value)


def integer_rows(width: int) -> Check:
    """A list of 1 to MAX_PIECES lists of `width` non-negative integers."""

    def check(key: str, value: Any) -> tuple[tuple[int, ...], ...]:
        ok = isinstance(value, list) and 1 <= len(value) <= MAX_PIECES
        ok = ok and all(isinstance(row, list) and len(row) == width for row in value)
        if not ok or not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for row in value for n in row):
            raise WireError("bad_shard", f"{key}; expected 1 to {MAX_PIECES} lists of {width} integers")
        return tuple(tuple(row) for row in value)

    return check


def integers(most: int, low: int, high: int) -> Check:
    """A list of 1 to `most` integers."""
    check_one = integer(low, high)

    def check(key: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise WireError("bad_field", f"{key}; expected 1 to {most} integers")
        return tuple(check_one(key, number) for number in value)

    return check


def cut(value: str, max_bytes: int) -> str:
    """The start of our own `value` that fits `max_bytes` of UTF-8."""
    return value.encode(errors="replace")[:max_bytes].decode(errors="ignore")


def encoded(value: str) -> bytes:
    """UTF-8; a lone surrogate, which msgpack would not send, counts as a bad name."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise WireError("bad_name", f"{value!a} is not UTF-8") from None


def show(value: Any) -> str:
    """At most 60 printable characters of a hostile value, without building a huge string first."""
    if isinstance(value, str | bytes):
        return ascii(value[:40])
    return ascii(value)[:60] if isinstance(value, int | float | bool | None) else type(value).__name__


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs) or not all(type(key) is str for key in value):
        raise ValueError("a key that comes twice or is no string")
    return value


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")
