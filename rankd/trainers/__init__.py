"""Who trains: the processes that push, what they tell about themselves, and which of them are gone. Pure."""

from rankd.trainers.gone import GRACE_SECONDS, Gone
from rankd.trainers.roll import Trainer, Trainers
from rankd.trainers.stats import NO_STATS, Stats, read_stats

__all__ = ["GRACE_SECONDS", "NO_STATS", "Gone", "Stats", "Trainer", "Trainers", "read_stats"]
