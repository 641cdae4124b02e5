"""Matrices and a tier → Readings: what of the spectrum is measured how, and what is known of the error.

measure.py: the path of a batch of matrices; tiers.py: what each tier makes of it; ask.py: what is asked; warm.py: what
the norms tier remembers.
"""

from rankd.engine.ask import DEFAULT_TOLERANCE, Ask
from rankd.engine.measure import measure_matrices
from rankd.engine.tiers import measure_product
from rankd.engine.warm import WarmStarts

__all__ = ["DEFAULT_TOLERANCE", "Ask", "WarmStarts", "measure_matrices", "measure_product"]
