from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.protocol import ALLOWED, AnimationOptions, parse_options
from server.errors import KINDS, ServiceError


@given(
    steps=st.integers(-5, 60),
    size=st.integers(100, 1100),
    scale=st.floats(allow_nan=True, allow_infinity=True, min_value=None),
)
def test_options_are_accepted_exactly_in_their_ranges(steps: int, size: int, scale: float) -> None:
    good = (
        1 <= steps <= 50
        and 128 <= size <= 1024
        and size % 2 == 0
        and math.isfinite(scale)
        and 0 <= scale <= 10
    )
    fields = {"steps": str(steps), "size": str(size), "audio_cfg": repr(scale)}
    if good:
        options = parse_options(fields)
        assert (options.steps, options.size, options.audio_cfg) == (steps, size, scale)
    else:
        with pytest.raises(ServiceError) as caught:
            parse_options(fields)
        assert caught.value.code == "invalid_option"


@given(text=st.text(), name=st.sampled_from(sorted(ALLOWED)))
def test_any_text_is_a_valid_or_rejected_option(text: str, name: str) -> None:
    try:
        parse_options({name: text})
    except ServiceError as error:
        assert error.code == "invalid_option"
        assert name in error.detail and ALLOWED[name] in error.detail


def test_every_option_states_its_range() -> None:
    assert set(ALLOWED) == set(AnimationOptions.model_fields)


@pytest.mark.parametrize("code", KINDS)
def test_every_error_is_a_problem_document(code: str) -> None:
    document = ServiceError(code, "why").problem()
    assert document["code"] == code
    assert document["detail"] == "why"
    assert document["status"] == KINDS[code].status
    assert document["title"] and str(document["type"]).endswith(code)


def test_unknown_codes_are_rejected() -> None:
    with pytest.raises(ValueError, match="unheard_of"):
        ServiceError("unheard_of", "why")
