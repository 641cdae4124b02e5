"""A tensor that is watched, and which ones are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rankd_client.naming import label_of
from rankd_client.wire import Shard

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Watched:
    """One tensor that is watched, or this process's part of it.

    `shape` is the whole tensor's, `dtype` its dtype on the wire. `num_bytes` is what this process sends of it,
    nothing where others have all of it; `turn_bytes` what each process of the job reckons with where all have to choose
    alike, and `group` which of them those are. `decode`, of a quantised
    tensor, gives its values, in `decoded_bytes` of memory in passing. `is_master`: `tensor` is an optimizer's float32
    copy of the weight.
    """

    name: str
    tensor: torch.Tensor = field(repr=False)
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    num_bytes: int
    is_cuda: bool
    priority: bool
    role: str = "weight"
    shard: Shard = field(default_factory=Shard)
    turn_bytes: int = 0
    group: str = ""
    replica: int | None = None
    decode: Callable[[Any], torch.Tensor] | None = field(default=None, repr=False)
    decoded_bytes: int = 0
    is_master: bool = False
    note: str = ""
    """Why it is not, though there is one."""

    @property
    def label(self) -> str:
        """What receipts call it: a weight's name may be that of its gradient too."""
        return label_of(self.name, self.role)

    def values(self) -> torch.Tensor:
        """The elements to copy, a plain floating tensor in the order of the shard."""
        tensor = self.tensor.detach()
        return tensor if self.decode is None else self.decode(tensor)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which names are wanted, as globs on cleaned names, and in which dtype they travel. `masters`: of a weight that
    one of the `optimizers` (weak references) keeps a float32 copy of, that copy."""

    dtype: str = "bfloat16"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()
    masters: bool = False
    optimizers: tuple[Callable[[], Any], ...] = field(default=(), repr=False)
    max_decoded_bytes: int | None = None
    """Of memory that decoding one quantised tensor may take."""

    def refuses(self, name: str) -> bool:
        included = self.include is None or matches(name, self.include)
        return not included or matches(name, self.exclude)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
