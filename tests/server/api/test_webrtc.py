"""`/webrtc` over real processes and sockets, with aiortc as the client."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from server.api.protocol import AI_GENERATED
from server.api.webrtc import MAX_OFFER_BYTES
from tests.server.fake_pipeline import GREEN_STEP
from tests.server.lossy_relay import LossyRelay, without_candidates
from tests.server.media_files import GRAINY, picture
from tests.server.service import FAKE, KEYS, Service, running
from tests.server.webrtc_client import (
    Call,
    Microphone,
    calling,
    new_call,
    noise,
    offer_once,
    offered,
    post,
)

pytestmark = pytest.mark.anyio

SLOW = 300_000  # bits a second


@pytest.fixture(scope="module")
def avatar(service: Service) -> str:
    return new_avatar(service.url)


def new_avatar(url: str, headers: dict[str, str] | None = None, portrait: bytes = b"") -> str:
    files = {"portrait": ("f", portrait or picture())}
    answer = httpx.post(url + "/avatars", files=files, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["avatar_id"])


@pytest.fixture(scope="module")
def strict(service: Service) -> Iterator[Service]:
    """One live session a client; keys."""
    with running({**FAKE, "FADA_API_KEYS": KEYS[0], "FADA_SESSIONS_PER_CLIENT": "1"}) as strict:
        yield strict


async def test_a_session_is_seen_heard_and_steered(service: Service, avatar: str) -> None:
    async with calling(service.url, avatar, noise, seed=7) as call:
        assert call.answer is not None
        assert call.answer.headers["X-Content-Source"] == AI_GENERATED
        await call.until(lambda: any(event["kind"] == "speech" for event in call.of("fragment")))
        ready = call.of("ready")[0]
        assert (ready["seed"], ready["fps"]) == (7, 25)
        assert call.answer.headers["Location"] == f"/webrtc/{ready['session_id']}"
        call.send("update", expressiveness=0.5)
        call.send("state", state="listening")
        await call.until(lambda: loud(call))
        call.send("interrupt")
        await call.until(lambda: call.of("interrupted"))
        await call.until(lambda: len(call.pictures) > 50)
        call.send("end")
        await call.until(lambda: call.of("done"))
        await call.until(lambda: call.connection.connectionState == "closed")
    _, early = call.pictures[5]  # a busy machine may make later ones smaller
    assert (early.width, early.height) == (128, 128)
    assert early.to_ndarray(format="rgb24")[:, :, 1].mean() == pytest.approx(7 * GREEN_STEP, abs=8)
    stamps = np.diff([frame.pts for _, frame in call.pictures])
    assert set(stamps) == {3600}  # 25 a second on a clock of 90 kHz, none missing


def loud(call: Call) -> bool:
    return any(np.abs(frame.to_ndarray()).max() > 1000 for _, frame in call.sounds[-50:])


@pytest.mark.realtime
async def test_picture_and_sound_arrive_together(service: Service, avatar: str) -> None:
    async with calling(service.url, avatar, noise) as call:
        await call.until(lambda: len(call.pictures) > 75 and len(call.sounds) > 150)
    lags = []
    for kept, clock in ((call.pictures, 90_000), (call.sounds, 48_000)):
        first = kept[0][1].pts
        lags.append(np.median([at - (f.pts - first) / clock for at, f in kept[50:]]))
    # The client holds four packets of sound back.
    assert -0.06 < lags[1] - lags[0] - 0.08 < 0.06


async def test_a_client_without_h264_gets_vp8(service: Service, avatar: str) -> None:
    async with calling(service.url, avatar, codecs="VP8", audio="false", seed=7) as call:
        await call.until(lambda: len(call.pictures) > 10)
        assert call.answer is not None and "H264" not in call.answer.text
        pixels = call.pictures[-1][1].to_ndarray(format="rgb24")
        assert pixels[:, :, 1].mean() == pytest.approx(7 * GREEN_STEP, abs=8)
        assert not call.sounds


@pytest.mark.realtime
async def test_a_lossy_and_jittery_line_is_survived(service: Service, avatar: str) -> None:
    async with LossyRelay(loss=0.03, jitter_s=0.03) as relay:
        async with calling(
            service.url, avatar, noise, on_offer=without_candidates, on_answer=relay.answer
        ) as call:
            await call.until(lambda: len(call.pictures) > 100)
            call.send("interrupt")
            await call.until(lambda: call.of("interrupted"))
            await call.until(lambda: loud(call))
        assert relay.lost > 10
    (first_s, first), (last_s, last) = call.pictures[25], call.pictures[-1]
    passed_s = (last.pts - first.pts) / 90_000
    assert last_s - first_s == pytest.approx(passed_s, abs=0.5)
    assert len(call.pictures) - 25 > 0.8 * 25 * passed_s


async def test_a_slow_line_is_sent_what_it_carries(service: Service) -> None:
    avatar = new_avatar(service.url, portrait=picture(GRAINY))
    async with (
        LossyRelay(bit_rate=SLOW) as relay,
        calling(
            service.url, avatar, audio="false",
            on_offer=without_candidates, on_answer=relay.answer,
        ) as call,
    ):  # fmt: skip
        await call.until(lambda: relay.lost > 30)  # the stream as it is
        lost = relay.lost
        await call.until(lambda: time.monotonic() - relay.overrun_s > 1.5)
        passed = relay.passed
        await call.until(lambda: relay.passed > passed + 30)
        assert relay.lost - lost < 1500


async def test_delete_frees_the_place(strict: Service) -> None:
    key = {"X-API-Key": KEYS[0]}
    avatar = new_avatar(strict.url, key)
    async with calling(strict.url, avatar, headers=key) as call:
        await call.until(lambda: call.pictures)
        assert call.answer is not None
        offer = call.connection.localDescription.sdp
        place = call.answer.headers["Location"]
        async with httpx.AsyncClient(base_url=strict.url) as http:
            busy = await offer_once(http, offer, key, avatar_id=avatar)
            assert (busy.status_code, busy.json()["code"]) == (429, "busy")
            bad = await offer_once(http, "v=0\r\n", key, avatar_id=avatar)
            assert (bad.status_code, bad.json()["code"]) == (400, "bad_request")
            assert (await http.delete(place)).status_code == 401
            assert (await http.delete(place, headers=key)).status_code == 204
        await call.until(lambda: call.connection.connectionState == "closed")
    async with calling(strict.url, avatar, headers=key) as call:
        await call.until(lambda: call.pictures)


async def test_a_client_that_leaves_frees_the_place(strict: Service) -> None:
    key = {"X-API-Key": KEYS[0]}
    avatar = new_avatar(strict.url, key)
    for _ in range(2):
        async with asyncio.timeout(10), calling(strict.url, avatar, headers=key) as call:
            await call.until(lambda: call.pictures)
        await asyncio.sleep(0.5)


async def test_one_microphone_is_taken_and_no_camera(service: Service, avatar: str) -> None:
    call = new_call()
    try:
        call.connection.addTrack(Microphone())
        offer = (await offered(call)).replace("a=recvonly", "a=sendrecv")
        async with httpx.AsyncClient(base_url=service.url) as http:
            answer = await post(http, offer, avatar_id=avatar)
            assert answer.status_code == 201, answer.text
            directions = re.findall(r"a=(sendrecv|sendonly|recvonly|inactive)", answer.text)
            assert directions == ["sendrecv", "inactive", "sendonly"]
            assert (await http.delete(answer.headers["Location"])).status_code == 204
    finally:
        await call.connection.close()


async def test_offers_that_cannot_be_answered_are_refused(service: Service, avatar: str) -> None:
    call = new_call()
    good = await offered(call)
    await call.connection.close()
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:
        for offer, code in (
            ("", "bad_request"),
            ("words", "bad_request"),
            ("v=0\r\n", "bad_request"),
            (re.sub("a=ice-pwd.*\r\n", "", good), "bad_request"),
            (good.replace("a=recvonly", "a=inactive"), "invalid_option"),
            (good.replace("H264", "H265").replace("VP8", "VP9"), "invalid_option"),
            (good.replace("opus/48000", "speex/48000"), "invalid_option"),
            ("v=0" + "x" * MAX_OFFER_BYTES, "too_large"),
        ):
            answer = await post(http, offer, avatar_id=avatar)
            assert answer.json()["code"] == code, (offer[:80], answer.text)
        silent = await post(
            http, good.replace("opus/48000", "speex/48000"), avatar_id=avatar, audio="false"
        )
        assert silent.status_code == 201
        assert (await http.delete(silent.headers["Location"])).status_code == 204
        assert (await post(http, good)).json()["code"] == "bad_request"
        wrong = await http.post("/webrtc", params={"avatar_id": avatar}, content=good)
        assert wrong.json()["code"] == "unsupported_media"
        unknown = await post(http, good, avatar_id="0" * 24)
        assert unknown.json()["code"] == "not_found"
        option = await post(http, good, avatar_id=avatar, steps="x")
        assert option.json()["code"] == "invalid_option"


async def test_an_unreachable_client_frees_the_place(
    strict: Service,
) -> None:
    key = {"X-API-Key": KEYS[0]}
    avatar = new_avatar(strict.url, key)
    call = new_call()
    offer = without_candidates(await offered(call))
    await call.connection.close()
    async with httpx.AsyncClient(base_url=strict.url, timeout=30) as http:
        assert (await post(http, offer, key, avatar_id=avatar)).status_code == 201
        start_s = time.monotonic()
        while (answer := await offer_once(http, offer, key, avatar_id=avatar)).status_code != 201:
            assert answer.json()["code"] == "busy"
            assert time.monotonic() - start_s < 25
            await asyncio.sleep(1.0)
        await http.delete(answer.headers["Location"], headers=key)
