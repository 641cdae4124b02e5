"""Whatever happens to a daemon, its history, a subscriber and what is on its way between them."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulated_daemon import Daemon, again, drain, settle, tracker

from rankd_client.stream import Gap, Outcome
from rankd_client.wire import Event, Query

RUNS = ("a", "b")
ACTIONS = ("publish a", "publish b", "heartbeat", "deliver", "lose", "answer", "drop answer", "tick")
LIFE = ("detach", "recover", "crash", "begin anew", "subscriber again")


class World:
    """A daemon, a subscriber, what is on its way between them, and what became of everything published."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.kind, self.options, self.num_streams, self.num_published = kind, options, 0, 0
        self.daemon = Daemon(self.new_id(), **options)
        self.daemon.publish(run="a", kind=kind, uid=-1)
        self.subscriber = tracker(kind)
        self.wire: list[Event] = []
        self.gaps: list[Gap] = []
        self.items = settle(self.daemon, self.subscriber, self.subscriber.start())
        self.questions: list[Query] = []
        self.unanswered = False

    def new_id(self) -> str:
        self.num_streams += 1
        return f"{self.num_streams:016x}"

    def act(self, action: str) -> None:
        outcome = Outcome()
        if action.startswith("publish"):
            self.num_published += 1
            uid = self.num_published
            self.wire.append(self.daemon.publish(action[-1], self.kind, uid=uid, alert_id=f"uid-{uid}"))
        elif action == "heartbeat":
            self.wire.append(self.daemon.heartbeat())
        elif action == "deliver" and self.wire:
            outcome = self.subscriber.on_event(self.wire.pop(0))
        elif action == "lose" and self.wire:
            self.wire.pop(0)
        elif action == "answer" and self.questions:
            outcome = self.subscriber.on_reply(self.daemon.answer(self.questions.pop(0)))
        elif action == "drop answer" and self.questions:
            self.questions.pop(0)
        elif action == "tick":
            outcome = self.subscriber.on_tick()
        elif action in LIFE:
            outcome = self.live(action)
        self.take(outcome)

    def live(self, action: str) -> Outcome:
        if action == "detach":
            self.daemon.detach(self.new_id())
        elif action == "recover":
            self.daemon.recover()
        elif action == "crash":
            self.daemon.crash()
            self.wire.clear()
        elif action == "begin anew":
            self.daemon = Daemon(self.new_id(), **self.options)
            self.wire.clear()
        else:
            self.wire.clear()
            self.questions.clear()
            self.unanswered |= self.subscriber.num_unanswered > 0
            self.subscriber = again(self.subscriber, self.kind)
            return self.subscriber.start()
        return Outcome()

    def take(self, outcome: Outcome) -> None:
        self.items += outcome.items
        self.gaps += outcome.gaps
        self.questions += outcome.queries

    def end(self) -> None:
        self.unanswered |= self.subscriber.num_unanswered > 0
        before = len(self.subscriber.gaps)
        self.items += drain(self.daemon, self.subscriber, self.wire, self.questions)
        self.gaps += list(self.subscriber.gaps)[before:]
        if self.subscriber._questions._pending:  # asked, and the answer lost: asked again in time
            for _ in range(4):
                outcome = self.subscriber.on_event(self.daemon.heartbeat())
                tick = self.subscriber.on_tick()
                before = len(self.subscriber.gaps)
                self.take(Outcome(outcome.items + tick.items, (), outcome.gaps + tick.gaps))
                self.items += settle(self.daemon, self.subscriber, Outcome((), outcome.queries + tick.queries))
                self.gaps += list(self.subscriber.gaps)[before:]


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(st.sampled_from(ACTIONS * 3 + LIFE), max_size=60),
    kind=st.sampled_from(["alert", "measurement"]),
    ring=st.sampled_from([1, 3, 1000]),
    reply_events=st.sampled_from([1, 2, 1000]),
)
@example(["publish a", "lose", "detach", "publish a", "deliver", "crash", "publish a"], "alert", 1000, 1000)
def test_whatever_happens_everything_in_the_history_is_yielded_once_and_in_order(
    actions: list[str], kind: str, ring: int, reply_events: int
) -> None:
    world = World(kind, ring=ring, reply_events=reply_events, tell_streams=True)
    for action in actions:
        world.act(action)
    world.end()
    uids = [item.uid for item in world.items if item.uid >= 0]
    assert len(uids) == len(set(uids)), "told twice"
    for run in RUNS:
        in_turn = [item.uid for item in world.items if item.run == run and item.mark.in_turn]
        assert in_turn == sorted(in_turn)
        lost = {
            (gap.stream_id, seq)
            for gap in world.gaps
            if gap.run == run
            for seq in range(gap.first_seq, gap.last_seq + 1)
        }
        kept = [body["uid"] for body in world.daemon.topics.get((kind, run), ())][-ring:]
        for body in world.daemon.topics.get((kind, run), ()):
            if body["uid"] < 0 or body["uid"] in uids:
                continue
            assert (body["stream_id"], body["seq"]) in lost, "missed, and not said"
            assert ring < 1000 or world.unanswered or body["uid"] not in kept
