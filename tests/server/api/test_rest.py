"""The REST contract over real HTTP, a real broker and a real worker; only the network is fake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.protocol import AI_GENERATED
from tests.server.fake_pipeline import GREEN_STEP
from tests.server.media_files import COVERED, NO_FACE, POISON, noise_picture, picture, sound
from tests.server.media_probe import boxes, probe
from tests.server.rest_client import animate, problem
from tests.server.service import Service


def test_a_portrait_is_animated(client: httpx.Client) -> None:
    response = animate(client, audio=sound(1.5), seed="3")
    assert response.status_code == 200
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["x-seed"] == "3"
    assert response.headers["x-job-id"]
    assert response.headers["x-content-source"] == AI_GENERATED
    assert response.headers["transfer-encoding"] == "chunked"
    kinds = [kind for kind, _ in boxes(response.content)]
    assert kinds[:3] == ["ftyp", "uuid", "moov"]
    assert kinds[3:] == ["moof", "mdat"] * ((len(kinds) - 3) // 2)
    seen = probe(response.content)
    assert (seen.width, seen.height) == (128, 128)
    assert seen.sound_s == pytest.approx(1.5, abs=0.001)
    assert seen.video_s == pytest.approx(1.5, abs=0.041)
    assert seen.pictures[:, 1].mean() == pytest.approx(3 * GREEN_STEP, abs=8)


def test_the_same_seed_gives_the_same_video(client: httpx.Client) -> None:
    one, two = (animate(client, seed="11").content for _ in range(2))
    assert one == two
    seeds = {animate(client).headers["x-seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_fragments_are_sent_while_later_ones_are_made(client: httpx.Client) -> None:
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(20.0))}
    with client.stream("POST", "/animate", files=files, data={"size": "128"}) as response:
        chunks = response.iter_bytes()
        received = b""
        while received.count(b"moof") < 1:
            received += next(chunks)
        meanwhile = client.get(f"/jobs/{response.headers['X-Job-Id']}").json()
        received += b"".join(chunks)
    assert probe(received).video_s == pytest.approx(20.0)
    assert (meanwhile["status"], meanwhile["progress"] < 1) == ("running", True)


def test_full_framing_keeps_the_aspect(client: httpx.Client) -> None:
    seen = probe(animate(client, framing="full", size="300").content)
    assert (seen.width, seen.height) == (200, 300)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_picture_format(client: httpx.Client, kind: str) -> None:
    assert animate(client, portrait=picture(kind=kind)).status_code == 200


@pytest.mark.parametrize("seconds", [0.05, 0.001, 3.0])
def test_silent_and_very_short_audio_works(client: httpx.Client, seconds: float) -> None:
    seen = probe(animate(client, audio=sound(seconds, silent=True)).content)
    assert len(seen.times_s) == -(-round(seconds * 1000) // 40)
    assert seen.sound_s == pytest.approx(seconds, abs=0.0005)


PNG_HEAD = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("portrait", "expected"),
    [
        (b"", (415, "unsupported_media")),
        (b"hello", (415, "unsupported_media")),
        (sound(0.1), (415, "unsupported_media")),
        (PNG_HEAD, (415, "unsupported_media")),
        (picture()[:60], (415, "unsupported_media")),
        (picture(size=(400, 400), kind="JPEG")[:700], (415, "unsupported_media")),
        (picture(size=(1, 1)), (415, "unsupported_media")),
        (picture(NO_FACE), (422, "no_face")),
        (picture(COVERED), (422, "occluded")),
        (noise_picture(700), (413, "too_large")),
    ],
    ids=["empty", "text", "sound", "head only", "cut png", "cut jpeg", "one pixel", "no face",
         "covered", "large file"],
)  # fmt: skip
def test_bad_portraits(client: httpx.Client, portrait: bytes, expected: tuple[int, str]) -> None:
    assert problem(animate(client, portrait=portrait)) == expected
    response = client.post("/avatars", files={"portrait": ("p.png", portrait)})
    assert problem(response) == expected


def test_a_picture_of_too_many_pixels(client: httpx.Client) -> None:
    status, code = problem(animate(client, portrait=picture(size=(9000, 6000))))
    assert (status, code) in {(413, "too_large"), (415, "unsupported_media")}


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (b"", (422, "empty_audio")),
        (sound(0.0, kind="WAV"), (422, "empty_audio")),
        (b"hello", (415, "unsupported_media")),
        (picture(), (415, "unsupported_media")),
        (sound(1.0)[:50], (415, "unsupported_media")),
        (sound(3600.0, silent=True, rate=4_000), (413, "too_large")),
    ],
    ids=["empty", "no samples", "text", "picture", "cut", "an hour"],
)
def test_bad_audio(client: httpx.Client, audio: bytes, expected: tuple[int, str]) -> None:
    assert problem(animate(client, audio=audio)) == expected


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("steps", "0", "1 to 50"),
        ("steps", "51", "1 to 50"),
        ("steps", "six", "1 to 50"),
        ("steps", "2.5", "1 to 50"),
        ("audio_cfg", "nan", "0 to 10"),
        ("audio_cfg", "inf", "0 to 10"),
        ("audio_cfg", "-0.1", "0 to 10"),
        ("reference_cfg", "10.01", "0 to 10"),
        ("reference_cfg", "", "0 to 10"),
        ("seed", "-1", "9223372036854775807"),
        ("seed", str(2**63), "9223372036854775807"),
        ("size", "126", "128 to 1024"),
        ("size", "129", "even"),
        ("size", "1026", "128 to 1024"),
        ("size", "NaN", "128 to 1024"),
        ("framing", "close", "portrait or full"),
        ("background", "green", "#00ff00"),
        ("background", "#0f0", "#00ff00"),
        ("background", "#00ff00", "draws the picture whole"),
        ("model", "none such", "fake"),
        ("colour", "red", "steps"),
    ],
)
def test_bad_options(client: httpx.Client, name: str, value: str, allowed: str) -> None:
    response = animate(client, **{name: value})
    assert problem(response) == (422, "invalid_option")
    assert name in response.json()["detail"]
    assert allowed in response.json()["detail"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "50"), ("audio_cfg", "0"), ("reference_cfg", "10"), ("seed", str(2**63 - 1)),
     ("size", "130"), ("framing", "full"), ("model", "fake")],
)  # fmt: skip
def test_options_at_their_limits(client: httpx.Client, name: str, value: str) -> None:
    assert animate(client, **{name: value}).status_code == 200


def test_malformed_forms(client: httpx.Client) -> None:
    good = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(0.1))}
    bad = [
        client.post("/animate"),
        client.post("/animate", json={"portrait": "x"}),
        client.post("/animate", content=b"x", headers={"content-type": "multipart/form-data"}),
        client.post(
            "/animate",
            content=b"--x\r\nnonsense",
            headers={"content-type": "multipart/form-data; boundary=x"},
        ),
        client.post("/animate", files={"portrait": good["portrait"]}),
        client.post("/animate", files={"audio": good["audio"]}),
        client.post("/animate", files=good, data={"avatar_id": "x"}),
        client.post("/animate", files={**good, "extra": ("e", b"e")}),
        client.post("/animate", files={"portrait": good["portrait"]}, data={"audio": "text"}),
        client.post("/animate", files=[*good.items(), ("audio", ("b", b"b"))]),
        client.post("/avatars", files={"audio": good["audio"]}),
        client.post("/avatars", files={"portrait": good["portrait"]}, data={"size": "512"}),
    ]
    assert [problem(response) for response in bad] == [(400, "bad_request")] * len(bad)


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "multipart/form-data; boundary=x", "multipart/form-data"]
)
def test_a_large_body_that_is_not_a_form_gets_a_response(client: httpx.Client, kind: str) -> None:
    for _ in range(3):
        response = client.post("/animate", content=bytes(3 << 20), headers={"content-type": kind})
        assert problem(response) == (400, "bad_request")


@pytest.mark.parametrize("declared", [True, False], ids=["said so", "turned out so"])
def test_a_body_that_is_too_large(client: httpx.Client, declared: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
        for _ in range(80):
            yield bytes(1 << 16)

    content: Any = b"".join(chunks()) if declared else chunks()
    response = client.post(
        "/animate",
        content=content,
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert problem(response) == (413, "too_large")
    assert str(4 << 20) in response.json()["detail"]


def test_a_poisoned_window_ends_its_own_video_only(service: Service, client: httpx.Client) -> None:
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(4.0))}
    with client.stream("POST", "/animate", files=files, data={"size": "256"}) as good:
        chunks = good.iter_bytes()
        received = next(chunks)
        with (
            service.client() as other,
            pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)),
        ):
            animate(other, portrait=picture(POISON), audio=sound(2.0))
        received += b"".join(chunks)
    assert probe(received).video_s == pytest.approx(4.0)


def test_an_avatar_is_created_once_and_used_often(client: httpx.Client) -> None:
    made = client.post("/avatars", files={"portrait": ("p.jpg", picture(kind="JPEG"))})
    assert made.status_code == 201
    avatar = made.json()
    assert (avatar["width"], avatar["height"]) == (64, 96)
    assert len(avatar["face"]["box"]) == 4 and 0 < avatar["face"]["confidence"] <= 1
    address = f"/avatars/{avatar['avatar_id']}"
    assert made.headers["location"] == address
    assert client.get(address).json() == avatar
    for _ in range(2):
        response = client.post(
            "/animate",
            files={"audio": ("a.flac", sound(0.4))},
            data={"avatar_id": avatar["avatar_id"], "size": "128"},
        )
        assert response.status_code == 200
        assert len(probe(response.content).times_s) == 10
    assert client.delete(address).status_code == 204
    assert problem(client.get(address)) == (404, "not_found")
    assert problem(client.delete(address)) == (404, "not_found")
    response = client.post(
        "/animate",
        files={"audio": ("a.flac", sound(0.4))},
        data={"avatar_id": avatar["avatar_id"]},
    )
    assert problem(response) == (404, "not_found")


def test_unknown_resources(client: httpx.Client) -> None:
    for method, path in [
        ("GET", "/jobs/none"), ("GET", "/jobs/none/video"), ("DELETE", "/jobs/none"),
        ("GET", "/avatars/none"), ("GET", "/none"), ("DELETE", "/avatars/%00"),
    ]:  # fmt: skip
        assert problem(client.request(method, path)) == (404, "not_found")
    assert problem(client.get("/animate")) == (405, "method_not_allowed")


def test_each_model_is_chosen_by_name(client: httpx.Client) -> None:
    models = client.get("/models").json()
    assert models["default"] == "fake"
    assert [model["name"] for model in models["models"]] == ["fake", "other"]
    assert animate(client, model="other").status_code == 200
    refused = animate(client, model="none")
    assert problem(refused) == (422, "invalid_option")
    assert "fake, other" in refused.json()["detail"]
    portrait = {"portrait": ("p.png", picture())}
    assert client.post("/avatars", files=portrait, data={"model": "other"}).status_code == 201
    unknown = client.post("/avatars", files=portrait, data={"model": "none"})
    assert problem(unknown) == (422, "invalid_option")


def test_health_models_and_openapi(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    for model in client.get("/models").json()["models"]:
        assert {"latent_space", "steps", "nfe_per_window", "fps", "size", "licence"} <= set(model)
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    form = paths["/animate"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"portrait", "avatar_id", "audio", "steps", "size"} <= set(form["properties"])
