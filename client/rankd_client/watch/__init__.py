"""What of a model is watched: its tensors under their own names, the part of each that this process holds, and why the
others are left out. Touches torch inside functions alone."""

from rankd_client.watch.also import watch_also
from rankd_client.watch.frameworks import MegatronAdapter
from rankd_client.watch.memo import Watcher
from rankd_client.watch.model import watch
from rankd_client.watch.place import Adapter, Place
from rankd_client.watch.watched import Selection, Watched

__all__ = ["Adapter", "MegatronAdapter", "Place", "Selection", "Watched", "Watcher", "watch", "watch_also"]
