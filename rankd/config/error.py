"""What a user hears of a setting that cannot be used."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be used: names the key, the value and what was expected."""
