from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.worker.scheduler import BatchScheduler, ScheduledWindow

SESSIONS = [f"s{n}" for n in range(6)]


def turn(session: str, deadline_s: float = 0.0) -> ScheduledWindow[str]:
    return ScheduledWindow(session, deadline_s, f"work of {session}")


def drained(scheduler: BatchScheduler[str]) -> list[list[str]]:
    batches = []
    while batch := scheduler.next_batch():
        batches.append([turn.session for turn in batch])
        for each in batch:
            scheduler.done(each.session)
    return batches


def test_the_earliest_deadlines_go_first_in_batches_of_limited_size() -> None:
    scheduler: BatchScheduler[str] = BatchScheduler(2)
    for session, deadline_s in [("late", 9.0), ("soon", 1.0), ("never", float("inf")), ("mid", 5)]:
        scheduler.add(turn(session, deadline_s))
    assert drained(scheduler) == [["soon", "mid"], ["late", "never"]]


def test_equal_deadlines_take_turns() -> None:
    scheduler: BatchScheduler[str] = BatchScheduler(1)
    served = []
    scheduler.add(turn("a"))
    scheduler.add(turn("b"))
    for _ in range(6):
        (one,) = scheduler.next_batch()
        served.append(one.session)
        scheduler.done(one.session)
        scheduler.add(turn(one.session))
    assert served == ["a", "b", "a", "b", "a", "b"]


def test_a_session_has_at_most_one_window_in_flight() -> None:
    scheduler: BatchScheduler[str] = BatchScheduler(2)
    scheduler.add(turn("a"))
    with pytest.raises(ValueError, match="'a'"):
        scheduler.add(turn("a"))
    scheduler.next_batch()
    with pytest.raises(ValueError, match="'a'"):
        scheduler.add(turn("a"))
    scheduler.done("a")
    scheduler.add(turn("a"))


def test_a_batch_holds_at_least_one_window() -> None:
    with pytest.raises(ValueError, match="max_batch = 0, expected at least 1"):
        BatchScheduler(0)


class AnyOrderOfCalls(RuleBasedStateMachine):
    """Against a plain list: nothing lost, nothing twice, urgent first, aborted never served."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: BatchScheduler[str] = BatchScheduler(3)
        self.waiting: list[ScheduledWindow[str]] = []
        self.flying: set[str] = set()

    def free(self) -> list[str]:
        busy = self.flying | {each.session for each in self.waiting}
        return [session for session in SESSIONS if session not in busy]

    @rule(data=st.data(), deadline_s=st.sampled_from([0.0, 1.0, 2.0, float("inf")]))
    def add(self, data: st.DataObject, deadline_s: float) -> None:
        if self.free():
            new = turn(data.draw(st.sampled_from(self.free())), deadline_s)
            self.scheduler.add(new)
            self.waiting.append(new)

    @rule()
    def next_batch(self) -> None:
        expected = sorted(self.waiting, key=lambda each: each.deadline_s)[:3]
        assert self.scheduler.next_batch() == expected
        self.flying |= {each.session for each in expected}
        self.waiting = [each for each in self.waiting if each not in expected]

    @rule(session=st.sampled_from(SESSIONS))
    def abort(self, session: str) -> None:
        self.scheduler.abort(session)
        self.waiting = [each for each in self.waiting if each.session != session]

    @rule(session=st.sampled_from(SESSIONS))
    def done(self, session: str) -> None:
        self.scheduler.done(session)
        self.flying.discard(session)

    @invariant()
    def nothing_is_both(self) -> None:
        assert not self.flying & {each.session for each in self.waiting}


TestAnyOrderOfCalls = AnyOrderOfCalls.TestCase
