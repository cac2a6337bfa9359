"""Engines: a network's forward, prepared for a device.

Importing this package disables OpenVINO's telemetry, which would report its use over the network
and write a file into the user's home. Where the telemetry package cannot be imported, OpenVINO
uses its own stub.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
