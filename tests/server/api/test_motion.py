"""`output=motion`: actions and head pose instead of a video, on every road."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import fada_client
import httpx
import numpy as np
import pytest
from fada_client import Client, Done, Motion

from model.portrait.blendshapes import ACTIONS
from server.motion import ARKIT_ACTIONS, POSE
from tests.server.fake_pipeline import BLUE_STEP, GREEN_STEP
from tests.server.media_files import picture, sound
from tests.server.rest_client import animate, problem
from tests.server.service import Service
from tests.server.stream_client import pcm, run_session

JAW = BLUE_STEP * np.arange(8) / 255  # of a window of the fake pipeline
FRAMES = 50


def test_a_line_names_the_numbers_and_each_other_is_a_frame(client: httpx.Client) -> None:
    answer = animate(client, audio=sound(2.0), output="motion", seed="3")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-seed"] == "3" and answer.headers["x-content-source"]
    names, *frames = map(json.loads, answer.text.splitlines())
    assert names == {"fps": 25, "actions": list(ARKIT_ACTIONS), "pose": list(POSE)}
    assert [frame["t"] for frame in frames] == [k / 25 for k in range(FRAMES)]
    column = names["actions"].index
    jaw = [frame["actions"][column("jawOpen")] for frame in frames]
    np.testing.assert_allclose(jaw, np.resize(JAW, FRAMES), atol=1e-5)
    brows = {frame["actions"][column("browInnerUp")] for frame in frames}
    assert brows == {round(3 * GREEN_STEP / 255, 5)}
    assert frames[8]["pose"][0] > frames[0]["pose"][0] == 0


def test_actions_are_those_of_the_model_in_the_order_of_arkit() -> None:
    assert sorted(ARKIT_ACTIONS) == sorted(ACTIONS)


def test_a_table_for_those_who_accept_csv(client: httpx.Client) -> None:
    answer = animate(client, audio=sound(2.0), output="motion", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == FRAMES and len(rows[0]) == 63
    assert (rows[30]["Timecode"], rows[0]["BlendShapeCount"]) == ("00:00:01:05.000", "61")
    jaw = [float(row["JawOpen"]) for row in rows]
    np.testing.assert_allclose(jaw, np.resize(JAW, FRAMES), atol=1e-5)


def test_a_job_keeps_its_motion(client: httpx.Client) -> None:
    background = {"Prefer": "respond-async"}
    made = animate(client, audio=sound(2.0), output="motion", seed="3", headers=background)
    address = made.headers["location"]
    assert made.json()["output"] == "motion"
    following = client.get(f"{address}/motion")  # while it is being made
    assert following.text == animate(client, audio=sound(2.0), output="motion", seed="3").text
    assert client.get(address).json()["status"] == "done"
    table = client.get(f"{address}/motion", headers={"Accept": "text/csv"})
    assert len(table.text.splitlines()) == 1 + FRAMES
    for method in (client.get, client.head):
        assert method(f"{address}/video").status_code == 404
    assert f"GET {address}/motion" in client.get(f"{address}/video").json()["detail"]
    video = animate(client, headers=background).headers["location"]
    assert problem(client.get(f"{video}/motion")) == (404, "not_found")


def test_other_outputs_are_named(client: httpx.Client) -> None:
    answer = animate(client, output="mesh")
    assert problem(answer) == (422, "invalid_option")
    assert answer.json()["detail"] == "output = 'mesh', expected video or motion"


def test_a_live_session_sends_messages_of_motion(service: Service) -> None:
    stream = run_session(service.url, [pcm(1.0)], output="motion")
    ready, done = stream.texts[0], stream.texts[-1]
    assert (ready["mime"], ready["width"], ready["height"]) == ("application/json", 0, 0)
    assert (ready["actions"], ready["pose"]) == (list(ARKIT_ACTIONS), list(POSE))
    assert not stream.data and set(stream.kinds) == {"ready", "motion", "done"}
    sent = stream.of("motion")
    assert [one["index"] for one in sent] == list(range(len(sent)))
    assert sum(len(one["actions"]) for one in sent) == done["frames"] == 25
    for one in sent:
        assert len(one["pose"]) == len(one["actions"]) == round(25 * one["duration_s"])


def test_the_client_has_frames_by_name(service: Service) -> None:
    with Client(service.url) as client:
        frames = list(client.animate(picture(), sound(2.0), output="motion", seed=3))
        assert len(frames) == FRAMES and set(frames[0].pose) == set(POSE)
        assert frames[9].actions["jawOpen"] == pytest.approx(JAW[1], abs=1e-5)
        with client.stream(portrait=picture(), output="motion", seed=3) as stream:
            assert stream.ready.actions == list(ARKIT_ACTIONS)
            stream.push_audio(pcm(1.0))
            stream.end()
            *motions, done = list(stream)
    assert isinstance(done, Done) and done.frames == 25
    live = [frame for event in motions if isinstance(event, Motion) for frame in event.frames]
    assert [frame.t for frame in live] == [k / 25 for k in range(25)]
    assert live[9] == frames[9]


def test_the_client_writes_motion_to_files(service: Service, tmp_path: Path) -> None:
    with Client(service.url) as client:
        job = client.jobs.submit(picture(), sound(2.0), output="motion", seed=3)
        assert job.output == "motion"
        for suffix in ("csv", "jsonl"):
            whole, later = (tmp_path / f"{name}.{suffix}" for name in ("whole", "later"))
            client.animate(picture(), sound(2.0), whole, output="motion", seed=3)
            client.jobs.motion(job.id, later)
            assert whole.read_text() == later.read_text()
            assert len(whole.read_text().splitlines()) == 1 + FRAMES
        with pytest.raises(fada_client.NotFound, match="/motion"):
            client.jobs.video(job.id, tmp_path / "video.mp4")
