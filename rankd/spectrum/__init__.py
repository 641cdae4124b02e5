"""A weight matrix → its singular values, or what can be said of them for less.

exact.py: the whole spectrum; krylov.py: Golub–Kahan recurrences of many start vectors at once, on which rest norms.py
(σ₁ between two bounds) and estimate.py (traces of functions of the singular values, with a bar); noise.py: what
rounding added to a copy. All take batches of equal shapes on one device.
"""

from rankd.spectrum.exact import LinAlgError, measure_spectrum

__all__ = ["LinAlgError", "measure_spectrum"]
