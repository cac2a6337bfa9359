"""Live sessions outlive their connections: two API processes and a worker on one Valkey."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from server.broker.embedded import embedded_server, valkey_program
from tests.e2e.talker import eventually
from tests.server.media_probe import probe
from tests.server.service import FAKE, Service, running, working
from tests.server.stream_client import Stream, pcm, run_session, stream_to
from tests.server.tcp_proxy import proxy_to

SEED = 9
SOUND = pcm(4.0)


@dataclass
class Pair:
    """Two API processes; ``client`` looks into their queue."""

    one: Service
    two: Service
    url: str
    client: redis.Redis

    def places(self) -> int:
        """Live sessions that hold one."""
        return int(self.client.xlen("fada:queue:live"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        broker = stack.enter_context(embedded_server(valkey_program()))
        settings = {**FAKE, "FADA_REDIS_URL": broker.url, "FADA_SESSIONS_PER_WORKER": "4"}
        stack.enter_context(working(settings))
        one, two = (stack.enter_context(running(settings, "api")) for _ in range(2))
        client = stack.enter_context(redis.Redis.from_url(broker.url))
        eventually(lambda: client.keys("fada:worker:*"), 30.0)
        yield Pair(one, two, broker.url, client)


@pytest.fixture(scope="module")
def whole(pair: Pair) -> Stream:
    """The same session without any trouble."""
    return run_session(pair.one.url, [SOUND], seed=SEED)


def cut_off(stream: Stream) -> None:
    """Drop the connection without a close."""
    stream.socket.socket.shutdown(2)


def credentials(stream: Stream, **fields: Any) -> dict[str, Any]:
    ready = stream.texts[0]
    heard = len(stream.of("fragment")) - (stream.kinds[-1] == "fragment")
    return {
        "session_id": ready["session_id"],
        "token": ready["token"],
        "next_index": heard,
        **fields,
    }


def resumed(stack: ExitStack, url: str, before: Stream, **fields: Any) -> Stream:
    after = stack.enter_context(stream_to(url))
    after.send("resume", **credentials(before, **fields))
    assert after.next() == "resumed", after.texts
    return after


def test_a_session_goes_on_at_another_process(pair: Pair, whole: Stream) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED)
        first.send_audio(SOUND[:40_001])
        for _ in range(3):
            first.until("fragment")
            first.next()
        cut_off(first)
        second = resumed(stack, pair.two.url, first)
        assert second.texts[0]["audio_bytes"] == 40_001 and second.texts[0]["messages"] == 1
        second.send_audio(SOUND[40_001:])
        done = second.finish()
    assert first.data + second.data == whole.data
    assert done == whole.texts[-1]


def test_nothing_is_lost_or_doubled_when_api_processes_are_killed(
    pair: Pair, whole: Stream
) -> None:
    settings = {**FAKE, "FADA_REDIS_URL": pair.url}
    with ExitStack() as stack:
        dying = stack.enter_context(running(settings, "api"))
        firsts = []
        for _ in range(2):
            first = stack.enter_context(stream_to(dying.url))
            first.start(seed=SEED)
            first.until("ready")
            firsts.append(first)
        for n in range(0, 64_000, 3_200):  # the process dies while sound is on its way
            for first in firsts:
                first.send_audio(SOUND[n : n + 3_200])
        for first in firsts:
            first.until("fragment")
        os.kill(dying.process.pid, signal.SIGKILL)
        for first in firsts:
            assert first.close_code() == 1006
            second = resumed(stack, pair.two.url, first)
            heard = second.texts[0]["audio_bytes"]
            assert heard == 3_200 * second.texts[0]["messages"] <= 64_000
            second.send_audio(SOUND[heard:])
            second.finish()
            if len(first.data) == 1:  # no fragment came, so the init segment comes again
                assert second.data.pop(0) == first.data[0]
            got = first.data + second.data
            if first.kinds[-1] == "fragment":  # it was announced, and came again
                assert second.of("fragment")[0] == first.of("fragment")[-1]
            assert got == whole.data
            indices = {f["index"] for f in first.of("fragment") + second.of("fragment")}
            assert indices == set(range(len(whole.data) - 1))
            assert probe(b"".join(got)).sound_s == pytest.approx(4.0, abs=0.001)
    assert pair.places() == 0


def test_fragments_that_were_sent_but_never_arrived_come_again(pair: Pair, whole: Stream) -> None:
    with proxy_to(pair.one.url) as proxy, ExitStack() as stack:
        first = stack.enter_context(stream_to(proxy.url))
        first.start(seed=SEED)
        first.send_audio(SOUND)
        first.until("fragment")
        first.next()
        proxy.frozen = True  # the service goes on sending, and notices nothing
        time.sleep(0.3)
        second = resumed(stack, pair.one.url, first)
        second.finish()
        assert first.data[:2] + second.data == whole.data
        proxy.cut()


def test_the_last_messages_come_again(pair: Pair, whole: Stream) -> None:
    """The client lost its connection when the session had ended already."""
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED)
        first.send_audio(SOUND)
        first.finish()
        second = resumed(stack, pair.two.url, first, next_index=len(whole.data) - 3)
        assert second.close_code() == 1000
        assert second.data == whole.data[-2:] and second.texts[-1] == whole.texts[-1]


def test_a_second_connection_takes_over(pair: Pair) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED, idle=True)
        first.until("fragment")
        first.next()
        second = resumed(stack, pair.two.url, first)
        assert first.close_code() == 1008
        assert first.texts[-1]["code"] == "taken_over"
        second.send_audio(pcm(0.5))
        second.finish()
        indices = [f["index"] for f in second.of("fragment")]
        assert indices == list(range(1, 1 + len(indices)))


def test_a_connection_that_was_taken_over_ends_nothing_by_its_close(pair: Pair) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED, idle=True)
        first.until("fragment")
        first.next()
        second = resumed(stack, pair.two.url, first)
        first.socket.close()
        second.until("fragment")
        second.next()
        second.send_audio(pcm(0.5))
        second.finish()
        indices = [f["index"] for f in second.of("fragment")]
        assert indices == list(range(1, 1 + len(indices)))


def test_interrupts_are_told_once(pair: Pair) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED)
        first.send_audio(pcm(2.0))
        first.until("fragment")
        first.next()
        first.send("interrupt")
        first.until("interrupted")
        cut_off(first)
        heard = len(first.of("fragment"))
        again = resumed(stack, pair.one.url, first, next_index=heard)
        assert again.next() == "interrupted"  # it may have been lost
        cut_off(again)
        second = resumed(stack, pair.two.url, first, next_index=heard, interrupted=1)
        second.finish()
        assert second.of("interrupted") == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"token": "guessed"}, "forbidden"),
    ({"session_id": "0" * 24}, "not_found"),
    ({"session_id": "../queue"}, "not_found"),
    ({"next_index": 1 << 70}, "invalid_option"),
    ({"next_index": 1}, "invalid_option"),
    ({"next_index": -1}, "invalid_option"),
    ({"next_index": "0"}, "invalid_option"),
    ({"interrupted": True}, "invalid_option"),
    ({"token": None}, "invalid_option"),
    ({"more": 1}, "invalid_option"),
]


def test_resumes_that_are_refused_end_nothing(pair: Pair) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED)
        first.until("ready")
        for fields, code in REFUSED:
            with stream_to(pair.two.url) as other:
                other.send("resume", **credentials(first, **fields))
                assert other.close_code() == 1008, fields
                assert other.texts[-1]["code"] == code and other.texts[-1]["detail"]
        cut_off(first)
        second = resumed(stack, pair.two.url, first)
        second.send_audio(pcm(0.2))
        second.finish()
        assert second.data[0][4:8] == b"ftyp"  # the first may not have had it


def test_a_flood_of_resumes_disturbs_nobody(pair: Pair) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED, idle=True)
        first.until("fragment")
        first.next()
        last = first
        for n in range(8):
            last = resumed(stack, (pair.one, pair.two)[n % 2].url, first)
        guess = credentials(first, token="guessed")
        for _ in range(8):
            with stream_to(pair.two.url) as other:
                other.send("resume", **guess)
                other.close_code()
        last.send_audio(pcm(0.5))
        last.finish()
        indices = [f["index"] for f in last.of("fragment")]
        assert indices == list(range(1, 1 + len(indices)))
        assert pair.places() == 0


def test_a_place_is_free_again_when_its_client_does_not_come_back(pair: Pair) -> None:
    with stream_to(pair.one.url) as lost, stream_to(pair.one.url) as closed:
        for stream in (lost, closed):
            stream.start(seed=SEED, idle=True)
            stream.until("fragment")
        began_s = time.monotonic()
        cut_off(lost)
        closed.socket.close()  # it does not want to come back
        eventually(lambda: pair.places() == 1, 2.0)
        eventually(lambda: pair.places() == 0, 16.0)
        assert time.monotonic() - began_s >= 9.5
    with stream_to(pair.two.url) as late:
        late.send("resume", **credentials(lost))
        assert late.close_code() == 1008 and late.texts[-1]["code"] == "not_found"


def test_fragments_that_are_not_kept_any_more(pair: Pair) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stream_to(pair.one.url))
        first.start(seed=SEED)
        first.send_audio(SOUND)
        while len(first.of("fragment")) < 4:
            first.until("fragment")
            first.next()
        cut_off(first)
        out = f"fada:job:{first.texts[0]['session_id']}:out"
        kept = [entry for entry, fields in pair.client.xrange(out) if b'"fragment"' in fields[b"m"]]
        assert len(kept) >= 4  # all that were sent
        pair.client.xdel(out, *kept[:2])
        with stream_to(pair.one.url) as late:
            late.send("resume", **credentials(first, next_index=1))
            assert late.close_code() == 1008
            assert late.texts[-1]["code"] == "not_found" and "2 is the" in late.texts[-1]["detail"]
        second = resumed(stack, pair.two.url, first, next_index=2)
        second.finish()
