"""A bot with a face, in the browser, without any key: its voice is a file.

    pip install -e clients/python -e 'integrations/pipecat-fada[example]'
    make serve                                          # in another terminal
    python integrations/pipecat-fada/examples/bot.py    # then open http://localhost:7860

It speaks when you join and whenever you have spoken. Interrupt it: it stops and listens.
"""

from __future__ import annotations

import os
from pathlib import Path

import soundfile
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    Frame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner
from pipecat_fada import FadaVideoService

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
URL = os.environ.get("FADA_API_URL", "http://127.0.0.1:8000")
SIZE = 512


def transport_params() -> TransportParams:
    """`video_out_is_live` stays off: pictures are shown in time with their sound."""
    return TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        video_out_enabled=True,
        video_out_width=SIZE,
        video_out_height=SIZE,
    )


class VoiceFromFile(FrameProcessor):
    """In the place of STT, LLM and TTS: answers whatever is said with the same speech."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        samples, self._rate = soundfile.read(path, dtype="int16", always_2d=True)
        self._pcm, self._channels = samples.tobytes(), samples.shape[1]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, VADUserStartedSpeakingFrame):
            await self.broadcast_frame(UserStartedSpeakingFrame)
            await self.broadcast_interruption()
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            await self.broadcast_frame(UserStoppedSpeakingFrame)
            await self.speak()

    async def speak(self) -> None:
        """The whole speech at once, as a TTS may send it."""
        size = self._rate // 50 * self._channels * 2
        await self.push_frame(TTSStartedFrame())
        for at in range(0, len(self._pcm), size):
            piece = self._pcm[at : at + size]
            await self.push_frame(TTSAudioRawFrame(piece, self._rate, self._channels))
        await self.push_frame(TTSStoppedFrame())


async def run(transport: BaseTransport, runner_args: RunnerArguments) -> None:
    voice = VoiceFromFile(EXAMPLES / "speech.wav")
    avatar = FadaVideoService(
        url=URL,
        api_key=os.environ.get("FADA_API_KEY"),
        portrait=EXAMPLES / "presenter.jpg",
        options={"size": SIZE},
    )
    pipeline = Pipeline(
        [
            transport.input(),
            # Any STT, LLM and TTS in place of the next two lines, with their keys:
            #   stt, aggregators.user(), llm, tts,
            # and `aggregators.assistant()` after the output.
            VADProcessor(vad_analyzer=SileroVADAnalyzer()),
            voice,
            avatar,
            transport.output(),
        ]
    )
    worker = PipelineWorker(
        pipeline, params=PipelineParams(enable_metrics=True, audio_out_sample_rate=24_000)
    )

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport: BaseTransport, client: object) -> None:
        logger.info("somebody joined")
        await voice.speak()

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport: BaseTransport, client: object) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=runner_args.handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


async def bot(runner_args: RunnerArguments) -> None:
    """What Pipecat's runner, and its cloud, start for each client."""
    transport = await create_transport(runner_args, {"webrtc": transport_params})
    await run(transport, runner_args)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
