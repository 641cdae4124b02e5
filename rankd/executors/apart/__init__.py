"""Measuring in processes: one for each device, and one for what no device measures, so that no Python waits for
another, and what breaks a process breaks no other and not the daemon (docs/decisions/0015-process-per-gpu.md).

solver.py: what a device's thread has in the place of a Solver; process.py: the daemon's end of a process; child.py: the
process; memory.py: what matrices go by; frames.py: what is said.
"""
