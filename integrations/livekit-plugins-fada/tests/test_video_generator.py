"""The `VideoGenerator` by itself, over the real service."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from conftest import KEY, PORTRAIT, Service
from fada_client import AsyncClient
from helpers import (
    END,
    FRAME,
    RATE,
    chunks,
    ends,
    generator_of,
    letters,
    noise,
    pictures,
    run,
    say,
    severable,
    sound,
    tone,
    watch,
)
from livekit.plugins.fada import FadaException, FadaVideoGenerator


def test_each_picture_of_speech_is_followed_by_its_sound_and_rest_is_silent(
    service: Service,
) -> None:
    async def work() -> None:
        async with generator_of(service) as generator:
            items = aiter(generator)
            await generator.push_audio(END)  # without sound before it: swallowed
            rest = await watch(items, pictures(5))
            speech = noise(1.01)  # 25 frames and a quarter
            await say(generator, speech)
            spoken = await watch(items, ends(1))
            after = await watch(items, pictures(12))
        assert letters(rest) == "VVVVV"
        assert re.fullmatch("V*(VA){26}E", letters(spoken))
        assert np.array_equal(sound(spoken), speech)
        assert letters(after) == "V" * 12

    run(work())


def test_each_segment_ends_once_after_its_last_sound(service: Service) -> None:
    async def work() -> None:
        async with generator_of(service) as generator:
            first, second = noise(0.5, 1), noise(0.3, 2)
            await say(generator, first)
            await generator.push_audio(END)
            await say(generator, second)
            seen = await watch(aiter(generator), ends(2))
        one, two, rest = letters(seen).split("E")
        assert rest == "" and one.count("A") == 13 and two.count("A") == 8
        assert np.array_equal(sound(seen), np.concatenate([first, second]))

    run(work())


def test_a_voice_that_falters_loses_nothing(service: Service) -> None:
    async def work() -> None:
        async with generator_of(service) as generator:
            speech = noise(1.5)
            items = aiter(generator)
            for frame in chunks(speech[: 15 * 1111]):
                await generator.push_audio(frame)
            # What is there is spoken; the piece of a frame that is left waits for more.
            first = await watch(items, lambda seen: letters(seen).endswith("AVVVV"))
            for frame in chunks(speech[15 * 1111 :]):
                await generator.push_audio(frame)
            await generator.push_audio(END)
            seen = first + await watch(items, ends(1))
        assert letters(first).count("A") == 15 * 1111 // FRAME
        assert np.array_equal(sound(seen), speech)

    run(work())


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (22_050, 1)])
def test_other_rates_and_channels_become_mono_at_the_generators_rate(
    service: Service, rate: int, channels: int
) -> None:
    async def work() -> None:
        mono = tone(1.0, rate=rate)
        both = np.stack([mono] * channels, axis=1) if channels > 1 else mono
        async with generator_of(service) as generator:
            for frame in chunks(both, rate // 100, rate):
                await generator.push_audio(frame)
            await generator.push_audio(END)
            seen = await watch(aiter(generator), ends(1))
        heard = sound(seen).astype(float)
        assert len(heard) == pytest.approx(RATE, abs=FRAME // 4)
        expected = tone(len(heard) / RATE)
        middle = slice(RATE // 10, -RATE // 10)
        assert np.corrcoef(heard[middle], expected[middle])[0, 1] > 0.99

    run(work())


def test_after_a_clear_nothing_of_the_old_segment_comes(service: Service) -> None:
    async def work() -> None:
        async with generator_of(service) as generator:
            items = aiter(generator)
            old, new = np.full(5 * RATE, 1000, "<i2"), np.full(RATE // 2, -1000, "<i2")
            await say(generator, old)
            await watch(items, lambda seen: letters(seen).count("A") == 6)
            last = await anext(items)  # a picture whose sound is not out yet
            generator.clear_buffer()
            generator.clear_buffer()
            await generator.push_audio(END)  # of the old segment: its sender did not know
            await say(generator, new)
            seen = await watch(items, ends(1))
        assert letters([last]) == "V"
        assert set(sound(seen)) == {-1000} and len(sound(seen)) == len(new)
        assert re.fullmatch("V*(VA){13}E", letters(seen))

    run(work())


def test_a_clear_before_the_first_picture_is_one_too(service: Service) -> None:
    async def work() -> None:
        async with generator_of(service) as generator:
            await say(generator, np.full(RATE, 1000, "<i2"))
            generator.clear_buffer()
            await say(generator, np.full(RATE // 4, -1000, "<i2"))
            seen = await watch(aiter(generator), ends(1))
        assert set(sound(seen)) == {-1000}

    run(work())


def test_a_reply_of_any_length_may_be_pushed_at_once(service: Service) -> None:
    """The service takes a minute of sound; the rest waits here and is dropped here."""

    async def work() -> None:
        async with generator_of(service) as generator:
            items = aiter(generator)
            await say(generator, np.full(100 * RATE, 1000, "<i2"))
            await watch(items, lambda seen: letters(seen).count("A") == 20)
            generator.clear_buffer()
            await say(generator, np.full(RATE // 4, -1000, "<i2"))
            seen = await watch(items, ends(1))
        assert set(sound(seen)) == {-1000}

    run(work())


def test_a_reader_that_stood_still_goes_on_in_the_present(service: Service) -> None:
    async def work() -> None:
        async with generator_of(service) as generator:
            await asyncio.sleep(1.5)  # as until somebody subscribes
            await say(generator, noise(0.4))
            seen = await watch(aiter(generator), ends(1))
        assert letters(seen).index("A") < 25

    run(work())


def test_what_the_service_refuses_is_an_error_with_its_code(service: Service) -> None:
    async def start(**arguments: object) -> str:
        async with AsyncClient(service.url, KEY) as client:
            generator = FadaVideoGenerator(client, **arguments)  # type: ignore[arg-type]
            with pytest.raises(FadaException) as caught:
                await generator.start()
            await generator.aclose()
        return caught.value.code

    assert run(start(avatar_id="0" * 24)) == "not_found"
    assert run(start(portrait=PORTRAIT, options={"size": 7})) == "invalid_option"


def test_a_lost_connection_costs_nothing_of_the_speech(service: Service) -> None:
    async def work() -> None:
        async with severable(service, resume_s=10.0) as (url, cut), AsyncClient(url, KEY) as client:
            generator = FadaVideoGenerator(client, portrait=PORTRAIT, options={"size": 128})
            await generator.start()
            items, speech = aiter(generator), noise(1.01)
            await say(generator, speech)
            before = await watch(items, lambda seen: "VA" * 4 in letters(seen))
            cut()
            after = await watch(items, ends(1))
            await generator.aclose()
        assert re.fullmatch("V*(VA){26}E", letters(before + after))
        assert np.array_equal(sound(before + after), speech)

    run(work())


def test_a_session_that_breaks_off_ends_the_iteration_with_an_error(service: Service) -> None:
    async def work() -> None:
        async with severable(service) as (url, cut), AsyncClient(url, KEY) as client:
            generator = FadaVideoGenerator(client, portrait=PORTRAIT, options={"size": 128})
            await generator.start()
            items = aiter(generator)
            await watch(items, pictures(4))
            cut()
            with pytest.raises(FadaException, match="connection_lost"):
                await watch(items, ends(1))
            await generator.aclose()

    run(work())
