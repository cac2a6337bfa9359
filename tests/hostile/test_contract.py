"""Whatever is sent to it, the service answers as its OpenAPI document says.

`FADA_TEST_EXAMPLES` requests are made up for each operation; half of them hold files and ids that
are good.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.api.app import create_app
from server.settings import Settings
from tests.server.media_files import picture, sound
from tests.server.rest_client import animate
from tests.server.service import Service

if TYPE_CHECKING:
    from schemathesis import Case

EXAMPLES = max(1, int(os.environ.get("FADA_TEST_EXAMPLES", "4")))
DOCUMENT = create_app(Settings(), "redis://nowhere").openapi()
OPERATIONS = [(method, path) for path, calls in DOCUMENT["paths"].items() for method in calls]
FILES = {"portrait": picture(), "audio": sound(0.1), "video": picture()}


@pytest.fixture(scope="module")
def ids(service: Service) -> dict[str, str]:
    """A finished job and an avatar."""
    with service.client() as client:
        made = client.post("/avatars", files={"portrait": ("p", picture())}).json()
        job = animate(client, audio=sound(0.1), headers={"Prefer": "respond-async"}).json()
        assert client.get(f"/jobs/{job['id']}/video").status_code == 200
    return {"avatar_id": made["avatar_id"], "job_id": job["id"]}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_conform_to_the_document(
    service: Service, ids: dict[str, str], method: str, path: str
) -> None:
    import schemathesis  # seconds, which only this test's process spends
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schemathesis.serializer("application/sdp")(lambda context, value: str(value).encode())
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method.upper()]
    made_up = st.one_of(
        operation.as_strategy(generation_mode=mode)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )

    @settings(
        max_examples=EXAMPLES, derandomize=EXAMPLES < 100, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=made_up, good=st.booleans())
    def conforms(case: Case, good: bool) -> None:
        if good:
            _make_good(case, ids)
        # A schema cannot say which bytes are a picture or a sound.
        case.call_and_validate(
            base_url=service.url, timeout=30, excluded_checks=[positive_data_acceptance]
        )

    conforms()


def _make_good(case: Case, ids: dict[str, str]) -> None:
    if case.method == "DELETE":
        return
    case.path_parameters = {name: ids[name] for name in case.path_parameters or {}}
    if isinstance(case.body, dict):
        body: dict[str, Any] = case.body
        body |= {name: blob for name, blob in FILES.items() if name in body}
        if "avatar_id" in body:
            body["avatar_id"] = ids["avatar_id"]
