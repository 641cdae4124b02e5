"""What a subscriber knows of the stream, and what it has to ask: pure, no socket, no clock."""

from rankd_client.stream.items import Gap, Item, Outcome
from rankd_client.stream.tracker import StreamTracker

__all__ = ["Gap", "Item", "Outcome", "StreamTracker"]
