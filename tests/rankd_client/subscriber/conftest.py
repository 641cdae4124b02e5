"""Publishers that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from publisher import Publisher


@pytest.fixture
def publishers() -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(alerts: str = "tcp://127.0.0.1:*", query: str = "tcp://127.0.0.1:*", **options: Any) -> Publisher:
        made.append(Publisher(alerts, query, **options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def publisher(publishers: Callable[..., Publisher]) -> Publisher:
    return publishers()
