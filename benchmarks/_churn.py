"""Trainers and subscribers that come, and go in every way there is."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from dataclasses import dataclass

from _children import CONNECT_SECONDS, FLUSH_SECONDS, Child, read, train

LAYERS, SIZE, INTERVAL_SECONDS = 6, 24, 0.2
STREAMS = ("alert", "measurement")
STOPPED_SECONDS = 10.0
"""How long a process that was stopped stays so before it is killed."""


@dataclass
class Guest:
    child: Child
    kind: str
    leaves_at: float
    stopped: bool = False


class Churn:
    """About `num_runs` trainers and `num_readers` subscribers at any time, each for `life_seconds` in the mean.

    `counts` says how many came, and how they went.
    """

    def __init__(self, generator: random.Random, num_runs: int, num_readers: int, life_seconds: float) -> None:
        self.counts: Counter[str] = Counter(trainer_errors=0)
        self._generator = generator
        self._wanted = {"run": num_runs, "reader": num_readers}
        self._life_seconds = life_seconds
        self._guests: list[Guest] = []
        self._leaving: list[Guest] = []

    def visit(self, url: str) -> None:
        """One trainer and one subscriber come and go."""
        self._guests += [self._enter(kind, url, 0.0) for kind in self._wanted]
        self.end()

    def tick(self, now: float, urls: list[str]) -> None:
        """Let those go whose time has come, and others come in their places, but not all in one moment."""
        for guest in [guest for guest in self._guests if now >= guest.leaves_at]:
            self._leave(guest, now)
        self._see_off(0.0)
        for kind, wanted in self._wanted.items():
            if sum(guest.kind == kind for guest in self._guests) < wanted:
                self._guests.append(self._enter(kind, self._generator.choice(urls), now))

    def end(self) -> None:
        """Everybody leaves in order, and has left."""
        for guest in self._guests:
            if guest.stopped:
                guest.child.kill()
            else:
                self._ask(guest)
        self._guests.clear()
        self._see_off(FLUSH_SECONDS + 10)

    def kill(self) -> None:
        for guest in (*self._guests, *self._leaving):
            guest.child.kill()
        self._guests.clear()
        self._leaving.clear()

    def _enter(self, kind: str, url: str, now: float) -> Guest:
        self.counts[f"{kind}s"] += 1
        if kind == "run":
            child = Child(train, url, f"run-{self.counts['runs']}", LAYERS, SIZE, INTERVAL_SECONDS)
        else:
            child = Child(read, url, 1, STREAMS)
        return Guest(child, kind, now + self._life_seconds * self._generator.uniform(0.5, 1.5))

    def _leave(self, guest: Guest, now: float) -> None:
        if guest.stopped or (way := self._generator.choice(("closed", "closed", "killed", "stopped"))) == "killed":
            self.counts["killed"] += not guest.stopped
            self._guests.remove(guest)
            guest.child.kill()
        elif way == "stopped":
            self.counts["stopped"] += 1
            os.kill(guest.child.process.pid or 0, signal.SIGSTOP)
            guest.stopped, guest.leaves_at = True, now + STOPPED_SECONDS
        else:
            self.counts["closed"] += 1
            self._guests.remove(guest)
            self._ask(guest)

    def _ask(self, guest: Guest) -> None:
        guest.child.pipe.send("stop")
        self._leaving.append(guest)

    def _see_off(self, seconds: float) -> None:
        """Let go of those who have said their last word; RuntimeError where one has not in so many seconds."""
        for guest in list(self._leaving):
            while guest.child.pipe.poll(seconds):
                said = guest.child.hear(CONNECT_SECONDS)
                if isinstance(said, str):  # that it has connected
                    continue
                if guest.kind == "run":
                    self.counts["trainer_errors"] += said["num_errors"]
                self._leaving.remove(guest)
                guest.child.end()
                break
            else:
                if seconds:
                    raise RuntimeError(f"a {guest.kind} did not end in {seconds} s")
