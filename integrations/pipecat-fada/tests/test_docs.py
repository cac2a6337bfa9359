"""What README and guide show can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat_fada import FadaVideoService

PAGES = (Path(__file__).parents[1] / "README.md", ROOT / "docs" / "guide" / "integrations.md")


class NoTransport(BaseTransport):
    def input(self) -> FrameProcessor:
        return FrameProcessor()

    def output(self) -> FrameProcessor:
        return FrameProcessor()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pipeline_of_the_page(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (one for one in blocks if "pipecat_fada" in one)
    others = {name: FrameProcessor() for name in ("stt", "user", "llm", "tts", "assistant")}
    names: dict[str, object] = {"transport": NoTransport(), **others}
    exec(block, names)
    pipeline, params = names["pipeline"], names["params"]
    assert isinstance(pipeline, Pipeline) and isinstance(params, TransportParams)
    assert any(isinstance(one, FadaVideoService) for one in pipeline.processors)
    assert params.video_out_framerate == 30 and not params.video_out_is_live
