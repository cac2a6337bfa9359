"""FLOPs and memory traffic of the video networks, and lower bounds of their time on GPUs.

    python bench/flops.py [--frames 12] [--prefix 4]

Full size, 512 × 512 pixels, half precision, on the meta device: nothing is computed. FLOPs are
those of torch's counter (a multiply and an add are two). Bytes are what convolutions, matrix
products, attention and norms read and write once, with elementwise operations fused into them. The
floor of an operation is the longer of its two times at the card's peak rates, and the floor of a
network is their sum: no program can be faster (roofline model, Williams et al. 2009).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from model.audio.whisper import WhisperConfig, WhisperEncoder
from model.video.blocks import reference_places
from model.video.config import UNetConfig, VAEConfig
from model.video.reference_unet import ReferenceUNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import on_meta

SIDE = 64  # of a latent: 512 pixels


@dataclass(frozen=True)
class Card:
    """Dense matrix rate in half precision with single-precision sums, and memory bandwidth."""

    name: str
    flops: float
    bandwidth: float


CARDS = (
    Card("H100 SXM", 989e12, 3.35e12),
    Card("RTX 4090", 165e12, 1.008e12),
    Card("L4", 121e12, 0.300e12),
)


@dataclass(frozen=True)
class Cost:
    """``operations``: (FLOPs, bytes) of each."""

    operations: tuple[tuple[float, float], ...]
    parameters: int

    @property
    def flops(self) -> float:
        return sum(f for f, _ in self.operations)

    @property
    def bytes(self) -> float:
        return sum(b for _, b in self.operations)

    def floor_s(self, card: Card) -> float:
        return sum(max(f / card.flops, b / card.bandwidth) for f, b in self.operations)


class _Operations(TorchFunctionMode):
    """Records the operations that must access memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _FLOPS:
            inputs = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
            moved = sum(_bytes(a) for a in (*inputs, out))
            self.seen.append((_FLOPS[name](args, out), moved))
        return out


def _bytes(x: Tensor) -> float:
    return x.numel() * 2.0


_FLOPS: dict[str, Callable[[tuple[Any, ...], Tensor], float]] = {
    "linear": lambda a, out: 2.0 * out.numel() * a[0].shape[-1],
    "conv1d": lambda a, out: 2.0 * out.numel() * a[1][0].numel(),
    "conv2d": lambda a, out: 2.0 * out.numel() * a[1][0].numel(),
    "scaled_dot_product_attention": lambda a, out: 4.0 * out.numel() * a[1].shape[-2],
    "group_norm": lambda a, out: 0.0,
    "layer_norm": lambda a, out: 0.0,
}


def count(net: nn.Module, run: Callable[[], object]) -> Cost:
    """The cost of ``run``. Raises ``RuntimeError`` if torch's counter disagrees on FLOPs."""
    operations, counter = _Operations(), FlopCounterMode(display=False)
    with torch.device("meta"), torch.inference_mode(), counter, operations:
        run()
    found, total = sum(f for f, _ in operations.seen), counter.get_total_flops()
    if abs(found - total) > 0.01 * total:
        raise RuntimeError(f"{found:.4g} FLOPs by operation, {total:.4g} by torch's counter")
    return Cost(tuple(operations.seen), sum(p.numel() for p in net.parameters()))


def denoiser_costs(frames: int, prefix: int, guided: bool) -> tuple[Cost, Cost]:
    """Costs of a window's conditions, once, and of each pass over ``frames`` new frames."""
    config = UNetConfig(guided=guided, prefix_frames=prefix)
    net = on_meta(lambda: DenoisingUNet(config)).half().eval()
    with torch.device("meta"):
        half = {"dtype": torch.float16}
        cond = {
            "audio": torch.empty(1, prefix + frames, 50, 384, **half),
            "face": torch.empty(1, config.channels[0], SIDE, SIDE, **half),
            "prefix": torch.empty(1, prefix, 4, SIDE, SIDE, **half),
            "has_audio": torch.empty(1),
            "has_reference": torch.empty(1),
            "guidance": torch.empty(1, 2),
        }
        for place, (level, width) in reference_places(config).items():
            cond[f"reference.{place}"] = torch.empty(1, (SIDE >> level) ** 2, width, **half)
        x_t, t = torch.empty(1, frames, 4, SIDE, SIDE), torch.empty(1)
        context = net.context(cond)
    return (
        count(net, lambda: net.context(cond)),
        count(net, lambda: net.denoise(x_t, t, context)),
    )


def reference_cost() -> Cost:
    net = on_meta(lambda: ReferenceUNet(UNetConfig(audio_width=None, motion=None))).half().eval()
    return count(net, lambda: net(torch.empty(1, 4, SIDE, SIDE)))


def vae_costs() -> tuple[Cost, Cost]:
    """Encoding one picture, decoding one frame."""
    net = on_meta(lambda: VAE(VAEConfig())).half().eval()
    return (
        count(net, lambda: net.encode(torch.empty(1, 3, 8 * SIDE, 8 * SIDE))),
        count(net, lambda: net.decode(torch.empty(1, 4, SIDE, SIDE))),
    )


class _TinyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for conv in self.convs:
            inner = torch.relu(conv(inner))
        return x + inner


def tiny_decoder_cost(width: int = 64) -> Cost:
    """A decoder of TAESD's shape: 3, 3, 3, 1 blocks of one width, doubling between them."""
    layers: list[nn.Module] = [nn.Conv2d(4, width, 3, padding=1)]
    for blocks in (3, 3, 3):
        layers += [_TinyBlock(width) for _ in range(blocks)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
    layers += [_TinyBlock(width), nn.Conv2d(width, 3, 3, padding=1)]
    net = nn.Sequential(*layers).to(device="meta", dtype=torch.float16)
    return count(net, lambda: net(torch.empty(1, 4, SIDE, SIDE, dtype=torch.float16)))


def whisper_cost() -> Cost:
    """Thirty seconds of sound."""
    net = on_meta(lambda: WhisperEncoder(WhisperConfig())).half().eval()
    return count(net, lambda: net(torch.empty(1, 80, 3000)))


def print_networks(costs: dict[str, Cost]) -> None:
    print("\n| one pass of | parameters | TFLOP | GB moved | " + _names() + " |")
    print("| --- | --- | --- | --- |" + " --- |" * len(CARDS))
    for name, cost in costs.items():
        floors = " | ".join(f"{1e3 * cost.floor_s(card):.2f} ms" for card in CARDS)
        size = f"{cost.parameters / 1e6:.1f} M"
        print(f"| {name} | {size} | {cost.flops / 1e12:.3f} | {cost.bytes / 1e9:.2f} | {floors} |")


def print_speeds(
    plain: Cost, context: Cost, student: Cost, *, decoder: Cost, tiny: Cost, frames: int
) -> None:
    """Frames per second at the floor: a window's context, its passes, and decoding its frames."""
    nothing = Cost((), 0)
    ways = [
        ("teacher, 25 steps × 2 branches", 50, plain, nothing, decoder),
        ("EchoMimic, 30 steps × 2 branches", 60, plain, nothing, decoder),
        ("balanced, 6 steps × 2 branches", 12, plain, nothing, decoder),
        ("student, 6 steps", 6, student, context, decoder),
        ("student, 4 steps", 4, student, context, decoder),
        ("student, 2 steps", 2, student, context, decoder),
        ("student, 2 steps, tiny decoder", 2, student, context, tiny),
    ]
    print("\n| | NFE | TFLOP a frame | GB a frame | " + _names() + " |")
    print("| --- | --- | --- | --- |" + " --- |" * len(CARDS))
    for name, nfe, each, once, decode in ways:
        flops = (nfe * each.flops + once.flops) / frames + decode.flops
        moved = (nfe * each.bytes + once.bytes) / frames + decode.bytes
        rates = []
        for card in CARDS:
            seconds = nfe * each.floor_s(card) + once.floor_s(card) + frames * decode.floor_s(card)
            rates.append(f"{frames / seconds:.1f}")
        costs = f"{flops / 1e12:.2f} | {moved / 1e9:.1f}"
        print(f"| {name} | {nfe} | {costs} | {' | '.join(rates)} |")


def _names() -> str:
    return " | ".join(card.name for card in CARDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=12, help="new frames of a window")
    parser.add_argument("--prefix", type=int, default=4, help="clean frames before it")
    chosen = parser.parse_args()
    frames, prefix = chosen.frames, chosen.prefix
    _, plain = denoiser_costs(frames, 0, guided=False)
    context, student = denoiser_costs(frames, prefix, guided=True)
    encode, decode = vae_costs()
    tiny = tiny_decoder_cost()
    print_networks(
        {
            f"teacher's UNet, {frames} frames": plain,
            f"student's UNet, {frames} frames after {prefix}": student,
            f"student's context, {prefix} frames, once a window": context,
            "reference UNet, once an avatar": reference_cost(),
            "VAE encoder, once an avatar": encode,
            "VAE decoder, one frame": decode,
            "tiny decoder of TAESD's shape, one frame": tiny,
            "Whisper tiny's encoder, 30 s": whisper_cost(),
        }
    )
    print("\nFrames a second at the floor:")
    print_speeds(plain, context, student, decoder=decode, tiny=tiny, frames=frames)


if __name__ == "__main__":
    main()
