"""Linear tools that several evaluations and data sources share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def ridge(x: NDArray[np.floating], y: NDArray[np.floating], penalty: float) -> Matrix:
    """(D, ...) weights w that minimise |y - x w|² + penalty |w|², for (N, D) and (N, ...)."""
    x = np.asarray(x, np.float64)
    gram = x.T @ x + penalty * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ np.asarray(y, np.float64)))


def with_neighbours(rows: NDArray[np.floating], reach: int) -> NDArray[np.floating]:
    """(T, D) → (T, (2 reach + 1) D): each row with ``reach`` rows on both sides, clamped."""
    padded = np.pad(rows, ((reach, reach), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(rows)] for i in range(2 * reach + 1)], axis=1)


class PrincipalAxes:
    """The ``count`` axes along which ``rows`` (N, D) vary most."""

    def __init__(self, rows: Matrix, count: int) -> None:
        self._mean = rows.mean(0)
        _, _, axes = np.linalg.svd(rows - self._mean, full_matrices=False)
        self._axes = axes[:count].T

    def __call__(self, rows: Matrix) -> Matrix:
        """(M, D) → (M, count) coordinates."""
        return np.asarray((rows - self._mean) @ self._axes)
