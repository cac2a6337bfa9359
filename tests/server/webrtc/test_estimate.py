from __future__ import annotations

from server.webrtc.estimate import RateWatch, ResendBudget

STREAM = 1_000_000


def watch() -> RateWatch:
    rate = RateWatch()
    rate.copied(STREAM, 1.0)
    return rate


def test_a_stream_is_sent_as_it_is_until_the_client_receives_less() -> None:
    rate = watch()
    assert rate.choose(0.0)[0]  # nothing is known
    rate.estimated(2 * STREAM, 0.0)
    assert rate.choose(0.0)[0]
    rate.estimated(STREAM // 2, 1.0)
    copies, room = rate.choose(1.0)
    assert not copies
    assert 0.35 * STREAM < room < 0.45 * STREAM  # with room for sound and packets sent again


def test_it_is_sent_as_it_is_again_once_there_is_room_for_it() -> None:
    rate = watch()
    rate.estimated(STREAM // 2, 1.0)
    rate.choose(1.0)
    rate.estimated(2 * STREAM, 2.0)
    assert not rate.choose(2.0)[0]  # not at once
    assert rate.choose(6.5)[0]


def test_what_was_too_much_is_tried_ever_more_rarely() -> None:
    rate, copies, tried = watch(), True, 0
    for second in range(1, 120):
        rate.estimated(STREAM // 2 if copies else 2 * STREAM, second)
        before, (copies, _) = copies, rate.choose(second)
        tried += copies and not before
    assert 2 <= tried <= 5


def test_an_old_estimate_counts_for_nothing() -> None:
    rate = watch()
    rate.estimated(STREAM // 2, 0.0)
    assert rate.choose(10.0)[0]


def test_a_line_that_loses_much_is_not_sent_it_all_again() -> None:
    budget = ResendBudget()
    assert sum(budget.take(100.0) for _ in range(1000)) == 80
    assert sum(budget.take(100.0 + at / 1000) for at in range(1, 2001)) in (79, 80)
    assert all(budget.take(200.0 + at / 10) for at in range(100))  # a few are lost on any line
