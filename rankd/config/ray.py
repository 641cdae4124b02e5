"""How much of a Ray cluster is used: the table [ray]."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rankd.config.error import ConfigError

MAX_WORKERS = 1024


@dataclass(frozen=True, slots=True)
class RayConfig:
    """What the executor `ray` may take."""

    max_bytes: int = 512 << 20
    """Of matrices that Ray has at once: in its object store, or on their way there. At most half of the smallest
    node's object store, whatever is said here. A matrix larger than that is measured by the daemon."""

    max_workers: int = 64
    """One for each GPU of the cluster or, where it has none, for each core, up to so many."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int) or not value > 0:
                raise ConfigError(f"ray.{item.name}={value!r}: expected a positive int")
        if self.max_workers > MAX_WORKERS:
            raise ConfigError(f"ray.max_workers={self.max_workers}: expected at most {MAX_WORKERS}")
