"""The order in which a sync sends, against a daemon's push socket that is worked by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from link_ends import PATIENCE_SECONDS, Router
from spooled import Spooled, chunk_of

from rankd.sync import Shipment, Tally, Unreachable, find_lives, ship
from rankd.sync.cargo import DROPPED, Cargo, Outcome
from rankd.sync.progress import Progress
from rankd_client.link import loop
from rankd_client.reports import MAX_BYTES
from rankd_client.spool.format import SpoolError
from rankd_client.wire import Ack, Bye, Chunk, Refusal, Reported, encode


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    router = Router(f"ipc://{tmp_path}/push.sock")
    yield router
    router.close()


class Syncing:
    """A shipment on a thread of its own."""

    def __init__(self, root: Path, address: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.told: list[str] = []
        (life,) = find_lives(root)[0]
        self.shipment = Shipment(life, address, None, patience_seconds, self.told.append)
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.shipment.run()
        except BaseException as error:
            self.fault = error

    def end(self) -> list[Tally]:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        if self.fault is not None:
            raise self.fault
        return self.shipment.tallies


Start = Callable[..., Syncing]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(loop, "RETRY_SECONDS", 0.05)
    started: list[Syncing] = []

    def begin(root: Path, **options: float) -> Syncing:
        started.append(Syncing(root, f"ipc://{tmp_path}/push.sock", **options))
        return started[-1]

    yield begin
    for syncing in started:
        syncing._thread.join(PATIENCE_SECONDS)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Steps 1 to 3 of two layers."""
    writer = Spooled(tmp_path / "spool", "lm", bytes(range(16)))
    for step in (1, 2, 3):
        for layer in "ab":
            writer.keep(chunk_of(layer, step), bytes([step] * 64))
    writer.close()
    return tmp_path / "spool"


def done(spool: Path) -> set[int]:
    progress = Progress(spool / bytes(range(16)).hex())
    progress.close()
    return progress.numbers


def chunks(router: Router, number: int) -> list[tuple[str, int]]:
    found = [router.chunk() for _ in range(number)]
    for chunk in found:
        router.send(Ack("received", chunk.layer, chunk.step, credit_bytes=len(chunk.payload)))
    return [(chunk.layer, chunk.step) for chunk in found]


def test_a_step_goes_when_that_before_it_is_recorded_and_that_is_on_the_disk(
    router: Router, start: Start, spool: Path
) -> None:
    syncing = start(spool)
    hello = router.welcome()
    assert (hello.run, hello.session, hello.agent) == ("lm", bytes(range(16)), "rankd sync")
    assert chunks(router, 2) == [("a", 1), ("b", 1)] and router.silent()
    router.send(Ack("recorded", "b", 1))
    assert chunks(router, 1) == [("b", 2)] and done(spool) == {1}
    router.send(Ack("recorded", "b", 2))
    assert chunks(router, 1) == [("b", 3)] and done(spool) == {1, 3} and router.silent()
    router.send(Ack("superseded", "a", 1), Refusal("measure_failed", "", "b", 3))
    assert chunks(router, 1) == [("a", 2)]
    router.send(Ack("recorded", "a", 2))
    assert chunks(router, 1) == [("a", 3)]
    router.send(Ack("recorded", "a", 3))
    (tally,) = syncing.end()
    assert (tally.num_shipped, tally.num_superseded, dict(tally.refused), tally.num_left) == (
        *(4, 1, {"measure_failed": 1}, 0),
    )
    assert done(spool) == set(range(6))


def test_answers_that_are_lost_are_asked_for_by_sending_again(
    router: Router, start: Start, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "LOST_SECONDS", 0.3)
    syncing = start(spool)
    router.welcome()
    assert chunks(router, 2) == [("a", 1), ("b", 1)]
    router.send(Ack("recorded", "b", 1))
    assert chunks(router, 1) == [("b", 2)]
    assert isinstance(router.receive(), Bye)
    router.welcome()
    assert sorted(chunks(router, 2)) == [("a", 1), ("b", 2)]
    for step in (1, 2, 3):
        router.send(Ack("recorded", "a", step))
        if step < 3:
            assert chunks(router, 1) == [("a", step + 1)]
    router.send(Ack("recorded", "b", 2))
    assert chunks(router, 1) == [("b", 3)]
    router.send(Ack("recorded", "b", 3))
    (tally,) = syncing.end()
    assert (tally.num_shipped, tally.num_repeats, tally.num_left) == (6, 2, 0)


def test_where_nobody_lets_it_in_it_gives_up(router: Router, start: Start, spool: Path) -> None:
    syncing = start(spool, patience_seconds=0.5)
    with pytest.raises(Unreachable):
        syncing.end()
    assert done(spool) == set() and syncing.shipment.tallies[0].num_left == 6


def test_numbers_go_as_they_are_in_one_line_with_the_snapshots(router: Router, start: Start, tmp_path: Path) -> None:
    writer = Spooled(tmp_path / "spool", session=bytes(range(16)))
    report = Reported("a", 1, {"stable_rank": 2.5})
    header, body = map(bytes, encode(report))
    writer.session.keep(("a", "weight", "numbers"), 1, header, body, lambda: None)
    writer.keep(chunk_of("a", 2))
    writer.close()
    syncing = start(tmp_path / "spool")
    assert router.welcome().version == 3
    assert router.receive() == report and router.silent()
    router.send(Ack("received", "a", 1, credit_bytes=len(body)), Ack("recorded", "a", 1))
    assert chunks(router, 1) == [("a", 2)]
    router.send(Ack("recorded", "a", 2))
    assert syncing.end()[0].num_shipped == 2


def test_a_body_that_is_damaged_is_passed_over(router: Router, start: Start, spool: Path) -> None:
    path = spool / bytes(range(16)).hex() / "00.spool"
    content = path.read_bytes()
    path.write_bytes(content.replace(bytes([1] * 64), bytes([9] * 64), 1))
    syncing = start(spool)
    router.welcome()
    assert chunks(router, 2) == [("b", 1), ("a", 2)]
    for step in (1, 2, 3):
        router.send(Ack("recorded", "b", step))
        assert step == 3 or chunks(router, 1) == [("b", step + 1)]
    router.send(Ack("recorded", "a", 2))
    assert chunks(router, 1) == [("a", 3)]
    router.send(Ack("recorded", "a", 3))
    (tally,) = syncing.end()
    assert (tally.num_shipped, tally.num_damaged, tally.num_left) == (5, 1, 0)
    assert syncing.told == [str(SpoolError(path, "a snapshot's checksum is wrong", 32))]
    assert not tally.is_over


def test_what_a_trainer_thins_out_meanwhile_is_no_damage(router: Router, start: Start, spool: Path) -> None:
    syncing = start(spool)
    router.welcome()
    assert chunks(router, 2) == [("a", 1), ("b", 1)]
    syncing.shipment.index.logs.close()  # as where there are more files than may be open
    (spool / bytes(range(16)).hex() / "01.spool").unlink()
    router.send(Ack("recorded", "a", 1), Ack("recorded", "b", 1))
    assert chunks(router, 2) == [("a", 2), ("b", 2)]
    router.send(Ack("recorded", "a", 2), Ack("recorded", "b", 2))
    (tally,) = syncing.end()
    assert (tally.num_shipped, tally.num_thinned, tally.num_damaged, tally.num_left) == (4, 2, 0, 0)
    assert syncing.told == [] and tally.is_over


def test_no_answer_waits_for_others_as_each_brings_the_next_step(
    router: Router, start: Start, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_GATHER_SECONDS", 6 * PATIENCE_SECONDS)
    syncing = start(spool)
    router.welcome()
    for step in (1, 2, 3):
        assert len(chunks(router, 2)) == 2
        router.send(Ack("recorded", "a", step), Ack("recorded", "b", step))
    assert syncing.end()[0].num_shipped == 6


def test_what_is_under_way_has_bounds(
    router: Router, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "MAX_UNDER_WAY_BYTES", 200)
    writer = Spooled(tmp_path / "spool", session=bytes(range(16)))
    for layer in range(8):
        writer.keep(chunk_of(str(layer), 1))
    writer.close()
    syncing = start(tmp_path / "spool")
    router.welcome()
    assert len(chunks(router, 4)) == 4 and router.silent()
    for layer in range(8):
        router.send(Ack("recorded", str(layer), 1))
        if layer < 4:
            chunk = router.receive()
            assert isinstance(chunk, Chunk) and chunk.layer == str(layer + 4)
    assert syncing.end()[0].num_shipped == 8


def test_numbers_of_more_bytes_than_a_trainer_may_hold_are_all_dealt_with(
    router: Router, start: Start, tmp_path: Path
) -> None:
    writer, layers = Spooled(tmp_path / "spool", session=bytes(range(16))), [str(layer) for layer in range(80)]
    spectra: dict[str, object] = {str(head): [float(index) for index in range(1000)] for head in range(7)}
    for layer in layers:
        header, body = map(bytes, encode(Reported(layer, 1, spectra)))
        assert len(layers) * len(body) > MAX_BYTES
        writer.session.keep((layer, "weight", "numbers"), 1, header, body, lambda: None)
    writer.close()
    syncing = start(tmp_path / "spool")
    router.welcome()
    for layer in layers:
        report = router.receive()
        assert isinstance(report, Reported) and report.layer == layer
        router.send(Ack("received", layer, 1, credit_bytes=report.num_bytes), Ack("recorded", layer, 1))
    (tally,) = syncing.end()
    assert (tally.num_shipped, tally.num_left) == (len(layers), 0)


def test_numbers_that_cannot_be_sent_have_an_outcome_too() -> None:
    cargo = Cargo()
    cargo.put_numbers(Reported("a", 1, {"stable_rank": 2.5}))
    cargo.reports.give_up()
    assert cargo.outcomes.get_nowait() == Outcome(("a", "weight"), 1, DROPPED, 0)
