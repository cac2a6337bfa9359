"""A portrait and speech become windows of video, end to end, on tiny networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from model.audio.whisper import WhisperConfig, WhisperEncoder, audio_tokens, speech_states
from model.diffusion.denoiser import VDenoiser
from model.diffusion.discrete_schedule import LinearBetaSchedule
from model.diffusion.guidance import CFGTokenDenoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.portrait.image import load_picture
from model.types import FPS
from model.video.config import FaceLocatorConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.space import ReferenceEncoder, VideoSpace
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE

NEW, PREFIX, WINDOWS = 4, 2, 3
SCHEDULE = LinearBetaSchedule(1000, first=0.00085, last=0.012, zero_terminal_snr=True)


def test_speech_and_a_portrait_become_frames_window_by_window(
    examples: Path,
    make_config: Callable[..., UNetConfig],
    make_net: Callable[..., DenoisingUNet],
    shake: Callable[[torch.nn.Module], torch.nn.Module],
) -> None:
    torch.manual_seed(0)
    config = make_config(in_channels=4, out_channels=4, guided=True, prefix_frames=PREFIX)
    net = make_net(in_channels=4, out_channels=4, guided=True, prefix_frames=PREFIX)
    space = VideoSpace(VAE(VAEConfig((4, 4, 8), 1, 4, 2)).eval().requires_grad_(False), 64)
    still = make_config(in_channels=4, audio_width=None, motion=None)
    locator = shake(FaceLocator(FaceLocatorConfig(1, (2, 3, 4), config.channels[0])))
    whisper = WhisperEncoder(WhisperConfig(80, 100, config.audio_width or 0, 2, 4)).eval()
    encode = ReferenceEncoder(shake(ReferenceUNet(still)), locator, space.latent_shape)
    portraits = [
        space.encode_reference(load_picture((examples / name).read_bytes()))
        for name in ("presenter.jpg", "astronaut.jpg")
    ]
    fixed = [encode(portrait) for portrait in portraits]
    sound, rate = soundfile.read(examples / "speech.wav", dtype="float32")
    assert rate == 16_000
    tokens = audio_tokens(speech_states(whisper, sound[: 2 * rate]), FPS)
    denoiser = CFGTokenDenoiser(VDenoiser(net, SCHEDULE), ((1.0, 4.0), (1.0, 3.0)))

    def run(sessions: list[int]) -> Tensor:
        """(B, NEW · WINDOWS, C, h, w): each window goes on from the last frames before it."""
        kept = {k: torch.cat([fixed[i][k] for i in sessions]) for k in fixed[0]}
        prefix = torch.from_numpy(space.rest_prefix(PREFIX)).reshape(1, -1, *space.latent_shape)
        made = prefix.expand(len(sessions), -1, -1, -1, -1)
        for window in range(WINDOWS):
            heard = tokens[window * NEW : window * NEW + PREFIX + NEW].expand(len(made), -1, -1, -1)
            noise = torch.cat(
                [
                    torch.randn(1, NEW, *space.latent_shape, generator=seeded(i, window))
                    for i in sessions
                ]
            )
            guidance = torch.tensor([[2.0, 1.0]]).expand(len(made), 2)
            cond = {**kept, "audio": heard, "prefix": made[:, -PREFIX:], "guidance": guidance}
            made = torch.cat(
                [made, sample(denoiser, noise, uniform_timesteps(2), cond=cond, schedule=SCHEDULE)],
                dim=1,
            )
        return made[:, PREFIX:]

    def seeded(session: int, window: int) -> torch.Generator:
        return torch.Generator().manual_seed(100 * session + window)

    together = run([0, 1])
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], run([i]), atol=1e-4, rtol=1e-4)
    assert float((together[0] - together[1]).abs().max()) > 0.1
    latents = together[0].reshape(NEW * WINDOWS, space.dim).numpy()
    frames = list(space.decoder(portraits[0], 128, "full").decode(latents))
    assert [f.shape for f in frames] == [(128, 128, 3)] * (NEW * WINDOWS)
    assert len({f.tobytes() for f in frames}) == len(frames)
    assert all(f.dtype == np.uint8 for f in frames)
