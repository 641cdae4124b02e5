"""rankd: a background monitor of weight-matrix health."""
