"""Tests import OpenVINO themselves, so the package must disable its telemetry first."""

import engines  # noqa: F401
