"""Which tier for which layer, and how often, so that measuring keeps its share of the time. No torch, no clock, no
asyncio: the time is an argument. `keep_reviewed` alone knows of a loop, and of threads."""

from rankd.plan.beside import keep_reviewed
from rankd.plan.config import AskedTier, MeasureConfig
from rankd.plan.costs import Costs, Size
from rankd.plan.fair import Demand, allot
from rankd.plan.planner import Planner, tier_by_cost

__all__ = ["AskedTier", "Costs", "Demand", "MeasureConfig", "Planner", "Size", "allot", "keep_reviewed", "tier_by_cost"]
