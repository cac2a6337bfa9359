from __future__ import annotations

from pathlib import Path

import torch

from bench import card_sessions

PAGE = Path(__file__).parents[2] / "docs/guide/gpu.md"


def test_the_page_has_what_the_program_prints() -> None:
    with torch.inference_mode():
        printed = card_sessions.lines()
    assert set(printed) <= set(PAGE.read_text().splitlines())
