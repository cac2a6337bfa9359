"""Tests of engines import OpenVINO themselves: silenced first, as the package does it."""

import engines  # noqa: F401
