"""Engines of compiled functions, whatever compiled them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from engines.export import Example, Program, Tensors, condition_names
from engines.split import SplitEngine


class ProgramEngine(SplitEngine):
    """A denoiser's two halves. Takes any batch: a larger one goes through in portions.

    Tensors may be anywhere; what comes back is where ``x_t`` is.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        programs: Mapping[str, Program],
        most: int,
        device: torch.device,
    ) -> None:
        """``names``: the conditions', in order; ``most``: rows that the programs take at once."""
        super().__init__(names)
        self._context, self._denoise = programs["context"], programs["denoise"]
        self._most, self._device = most, device
        self._told: list[Tensors] = []

    def prepare(self, conditions: Tensors) -> None:
        told = (self._context(part) for part in self._portions(conditions))
        # Laid out once, not at every step.
        self._told = [tuple(x.contiguous() for x in part) for part in told]

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        made = [
            self._denoise((*part, *told))[0]
            for part, told in zip(self._portions((x_t, t)), self._told, strict=True)
        ]
        return torch.cat(made).to(x_t)

    def _portions(self, tensors: Sequence[Tensor]) -> Iterator[Tensors]:
        for start in range(0, len(tensors[0]), self._most):
            rows = slice(start, start + self._most)
            yield tuple(x[rows].to(self._device).contiguous() for x in tensors)


def run_all(programs: Mapping[str, Program], rows: Example) -> Tensors:
    """What the network of ``programs`` makes of ``rows``, whose names are its inputs'."""
    if "denoise" not in programs:
        (program,) = programs.values()
        return program(tuple(rows[name] for name in sorted(rows)))
    told = programs["context"](tuple(rows[name] for name in condition_names(rows)))
    return programs["denoise"]((rows["x_t"], rows["t"], *told))
