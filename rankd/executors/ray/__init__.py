"""Measuring on a Ray cluster (docs/decisions/0013-ray.md).

In the daemon: executor.py, with link.py to a process beside it: driver.py, with cluster.py, crew.py and dispatch.py;
actor.py: what runs in the cluster; frames.py: what goes between the daemon and the driver.
"""
