"""Which tier for which layer, and how often, so that measuring keeps its share of the time. No torch, no clock, no
asyncio: the time is an argument."""

from rankd.plan.config import MeasureConfig
from rankd.plan.planner import Planner

__all__ = ["MeasureConfig", "Planner"]
