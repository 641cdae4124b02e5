"""What `rankd doctor` looks at, one module a subject. Checks give Findings, and raise nothing for what they find."""

from rankd.doctor.finding import Finding

__all__ = ["Finding"]
