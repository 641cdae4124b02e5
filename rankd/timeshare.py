"""Whose turn it is among those that share a time equally, whatever each of their turns takes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from rankd.namespaces import namespace_of


class TimeShare:
    """Who has had least is next. Counted is from when somebody begins to wait: then he has had no less than who is
    being served, so that nobody saves up while he is away. (Start-time fair queueing: Goyal, Vin & Cheng 1996.)

    Remembers each name until `forget`.
    """

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        """Seconds."""
        self._served = 0.0
        """What the one had had that was served last."""

    def __len__(self) -> int:
        """Names that are remembered."""
        return len(self._had)

    def begin(self, name: str) -> None:
        """Something of `name` waits, and nothing did."""
        self._had[name] = max(self._had.get(name, 0.0), self._served)

    def in_turn(self, names: Collection[str], further: Mapping[str, float]) -> Iterator[str]:
        """`names`, each of which began, the next one first; of those that have had as much, the first of `names`.
        `further`: seconds of their turns under way that are not counted yet."""

        def had(name: str) -> float:
            return self._had[name] + further.get(name, 0.0)

        if names:
            first = min(names, key=had)  # mostly it can be served, and no more is asked for
            yield first
            yield from sorted((name for name in names if name != first), key=had)

    def serve(self, name: str, seconds: float) -> None:
        """A turn of `name` begins, which is thought to take so long."""
        self._served = max(self._served, self._had[name])
        self._had[name] += seconds

    def correct(self, name: str, seconds: float) -> None:
        """A turn took so much more (or, negative, less) than was thought."""
        if name in self._had:
            self._had[name] += seconds

    def forget(self, name: str) -> None:
        self._had.pop(name, None)


class Fair:
    """Two such shares in one: namespaces, and within each its runs. Names are full names of runs."""

    def __init__(self) -> None:
        self._namespaces = TimeShare()
        self._runs: dict[str, TimeShare] = {}

    def begin(self, run: str, waiting: Mapping[str, Collection[str]]) -> None:
        """Something of `run` is to wait, and nothing did; `waiting`: namespace → runs of which something does."""
        if (namespace := namespace_of(run)) not in waiting:
            self._namespaces.begin(namespace)
        self._runs.setdefault(namespace, TimeShare()).begin(run)

    def in_turn(self, waiting: Mapping[str, Collection[str]], further: Mapping[str, float]) -> Iterator[str]:
        """The runs of `waiting`, the next one first. `further`: run → seconds of its turns that are not counted yet."""
        of_namespaces: dict[str, float] = {}
        for run, seconds in further.items():
            namespace = namespace_of(run)
            of_namespaces[namespace] = of_namespaces.get(namespace, 0.0) + seconds
        for namespace in self._namespaces.in_turn(waiting, of_namespaces):
            yield from self._runs[namespace].in_turn(waiting[namespace], further)

    def serve(self, run: str, seconds: float) -> None:
        """As of a TimeShare."""
        namespace = namespace_of(run)
        self._namespaces.serve(namespace, seconds)
        self._runs[namespace].serve(run, seconds)

    def correct(self, run: str, seconds: float) -> None:
        namespace = namespace_of(run)
        self._namespaces.correct(namespace, seconds)
        self._runs[namespace].correct(run, seconds)

    def forget(self, run: str) -> None:
        """With its namespace, if it was the last one."""
        runs = self._runs[namespace := namespace_of(run)]
        runs.forget(run)
        if not runs:
            del self._runs[namespace]
            self._namespaces.forget(namespace)
