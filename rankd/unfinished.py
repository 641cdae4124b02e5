"""Layers of which something is still missing: what they may hold, in all and by namespace, and whose they are. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from rankd.config import Limits
from rankd.namespaces import namespace_of
from rankd.quota import Quota, Tally, half
from rankd.records import LayerStep
from rankd.shards import OpenLayer
from rankd_client.wire import DTYPES, Chunk, WireError


class Unfinished:
    """A chunk costs the same however many layers there are: peers may open as many as there is room for."""

    def __init__(self, limits: Limits, quota: Callable[[str], Quota]) -> None:
        self.limits = limits
        self.bytes = Tally()
        self.layers = Tally()
        self.pieces = Tally()
        self._quota = quota
        self._layers: dict[LayerStep, OpenLayer] = {}
        self._steps: dict[tuple[str, str, str], dict[int, OpenLayer]] = {}
        """The same by layer."""
        self._begun: dict[tuple[str, str, str, bytes], LayerStep] = {}
        """(run, layer, role, session) → where this client has begun a shard that is not whole; it has one at most."""

    def get(self, key: LayerStep) -> OpenLayer | None:
        return self._layers.get(key)

    def steps(self, key: LayerStep) -> Mapping[int, OpenLayer]:
        """All that is unfinished of the layer of `key`, by step."""
        return self._steps.get(key[:3], {})

    def items(self) -> Iterable[tuple[LayerStep, OpenLayer]]:
        return self._layers.items()

    def check_room(self, key: LayerStep, chunk: Chunk) -> None:
        """Raises WireError where there is none for the shard that begins with `chunk`."""
        num_elements = math.prod(chunk.shape)
        # As bfloat16 at least: elements of one byte are widened for measuring, and are no way to twice as many.
        num_bytes = max(DTYPES[chunk.dtype].num_bytes(num_elements, chunk.shape), 2 * num_elements)
        if num_bytes > self.limits.max_layer_bytes:
            raise WireError("layer_too_large", f"{num_bytes} bytes; at most {self.limits.max_layer_bytes}")
        is_new = key not in self._layers
        full = self.bytes.total + chunk.total_bytes > self.limits.max_assembly_bytes
        num_pieces = max(1, len(chunk.shard.rectangles) + len(chunk.shard.ranges))
        full |= self.pieces.total + num_pieces > self.limits.max_open_pieces
        if full or (is_new and len(self._layers) >= self.limits.max_open_layers):
            raise WireError("assembly_full", f"{len(self._layers)} unfinished layers of {self.bytes.total} bytes")
        namespace = namespace_of(key[0])
        max_bytes = self._quota(namespace).max_bytes
        if max_bytes is not None and self.bytes.of(namespace) + chunk.total_bytes > max_bytes:
            raise WireError("quota_exceeded", f"namespace {namespace!a} has a quota of {max_bytes} bytes in memory")
        if not namespace:
            return
        max_layers, max_pieces = half(self.limits.max_open_layers), half(self.limits.max_open_pieces)
        if is_new and self.layers.of(namespace) >= max_layers:  # so that no key shuts the others out with tiny ones
            raise WireError("quota_exceeded", f"namespace {namespace!a} has {max_layers} unfinished layers, its share")
        if self.pieces.of(namespace) + num_pieces > max_pieces:
            raise WireError("quota_exceeded", f"namespace {namespace!a} has a share of {max_pieces} unfinished pieces")

    def open(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> OpenLayer:
        """The layer in which a shard that begins with `chunk` is open now. Raises WireError where it does not fit."""
        layer = self._layers.get(key)
        if layer is None:
            layer = OpenLayer(chunk.shape, chunk.dtype, chunk.source_dtype, now)
        layer.check(chunk)
        self._count(key[0], layer, -1)
        layer.open(session, chunk)
        self._count(key[0], layer, 1)
        self._layers[key] = self._steps.setdefault(key[:3], {})[key[3]] = layer
        self._begun[(*key[:3], session)] = key
        return layer

    def store(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> None:
        """Take the next bytes of a shard that is open."""
        layer = self._layers[key]
        layer.heard_at = now
        layer.store(session, chunk)
        if layer.shards[session].complete:
            del self._begun[(*key[:3], session)]

    def abandon(self, key: LayerStep, session: bytes) -> None:
        """A client that starts a shard has given up the one that it had begun of that layer, at whatever step (it sends
        newest only), and what it sent of that step before."""
        for other in {self._begun.get((*key[:3], session), key), key}:
            self.drop(other, session)

    def drop(self, key: LayerStep, session: bytes) -> None:
        """Give up what `session` sent of a layer at a step, if it did."""
        layer = self._layers.get(key)
        if layer is None or session not in layer.shards:
            return
        if self._begun.get((*key[:3], session)) == key:
            del self._begun[(*key[:3], session)]
        self._count(key[0], layer, -1)
        layer.drop(session)
        self._count(key[0], layer, 1)
        if not layer.shards:
            self._remove(key)

    def close(self, key: LayerStep) -> OpenLayer:
        """Hand out a layer that is complete, or given up."""
        layer = self._remove(key)
        self._count(key[0], layer, -1)
        for session, shard in layer.shards.items():
            if not shard.complete:
                del self._begun[(*key[:3], session)]
        return layer

    def _remove(self, key: LayerStep) -> OpenLayer:
        steps = self._steps[key[:3]]
        del steps[key[3]]
        if not steps:
            del self._steps[key[:3]]
        return self._layers.pop(key)

    def _count(self, run: str, layer: OpenLayer, sign: int) -> None:
        self.layers.add(run, sign * bool(layer.shards))
        self.bytes.add(run, sign * layer.num_bytes)
        self.pieces.add(run, sign * layer.num_pieces)

    def later_in_run(self, key: LayerStep) -> list[LayerStep]:
        """What waits for further clients at a later step of the same run, the latest first."""
        later = (other for other in self._layers if other[0] == key[0] and other[3] > key[3])
        return sorted((other for other in later if self._layers[other].is_shared), key=lambda other: -other[3])

    def of_run(self, run: str) -> list[LayerStep]:
        return [key for key in self._layers if key[0] == run]
