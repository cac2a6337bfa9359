"""What a student's file says of itself beside its parameters, and what follows for its pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.diffusion.denoiser import Denoiser
from model.diffusion.guidance import CFGTokenDenoiser, MultiCFGDenoiser
from model.pipeline import StudentInfo
from model.types import FPS, Guidance

Limits = tuple[tuple[float, float], tuple[float, float]]
OWN_LICENCE = "as its training data allow"
WARMEST = 2.0  # temperature; noise twice as loud is like nothing that was learned
SIZE = 512  # pixels of a video, unless another size is asked for


@dataclass(frozen=True)
class StudentFacts:
    """``limits``: the scales that a student was distilled in, of one that takes them as tokens;
    ``None``: its scales mix three branches, each an evaluation. ``temperature``: of a motion
    student's noise, of the eyes' and of brows and head."""

    steps: int
    guidance: Guidance
    limits: Limits | None
    licence: str
    temperature: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, facts: Mapping[str, Any], guided: bool, licence: str | None = None) -> StudentFacts:
        """``guided``: the network takes tokens. ``licence``: known better than the file knows it.

        Raises ``ValueError`` that names a fact which is missing or wrong.
        """
        needed = ("steps", "guidance", "limits") if guided else ("steps", "guidance")
        missing = [name for name in needed if name not in facts]
        if missing:
            raise ValueError(f"a student's facts lack {', '.join(missing)}; got {sorted(facts)}")
        limits: Limits | None = None
        if guided:
            audio, reference = facts["limits"]
            limits = (audio[0], audio[1]), (reference[0], reference[1])
        words = licence or str(facts.get("licence", OWN_LICENCE))
        warmth = _warmth(facts.get("temperature", 1.0))
        guidance = Guidance(*facts["guidance"])
        return cls(int(facts["steps"]), guidance, limits, words, warmth)

    def info(self, name: str, latent_space: str) -> StudentInfo:
        """What `GET /models` says."""
        return StudentInfo(
            name=name,
            latent_space=latent_space,
            steps=self.steps,
            nfe_per_window=self.steps * (3 if self.limits is None else 1),
            fps=FPS,
            size=SIZE,
            licence=self.licence,
            guidance=self.guidance,
        )

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """``denoiser`` with its two scales: as tokens, or by its three branches."""
        if self.limits is None:
            return MultiCFGDenoiser(denoiser)
        return CFGTokenDenoiser(denoiser, self.limits)


def _warmth(fact: object) -> tuple[float, float]:
    pair = list(fact) if isinstance(fact, (list, tuple)) else [fact, fact]
    numbers = [x for x in pair if isinstance(x, (int, float)) and 0 <= x <= WARMEST]
    if len(pair) != 2 or len(numbers) != 2:
        raise ValueError(
            f"a student's temperature is {fact}, expected 0 to {WARMEST}, for all or eyes and head"
        )
    return numbers[0], numbers[1]


def refuse_teacher(facts: Mapping[str, Any], what: str, make: str) -> None:
    """Raises ``ValueError`` where ``facts`` are a teacher's; ``make`` is what makes a student."""
    if facts.get("role") == "teacher":
        raise ValueError(
            f"{what} holds a teacher, which needs 25 steps of 3 evaluations: "
            f"`{make}` makes a student of it"
        )
