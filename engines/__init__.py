"""Engines: one network's forward, wrapped. Importing this package keeps OpenVINO silent.

``import openvino`` would report its use over the network and leave a file in the user's home. A
package that cannot be imported reports nothing: OpenVINO then takes its own stub of it.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
