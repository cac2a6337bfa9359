"""`fada engines build` as a test's worker runs it: a process that ends as ``TEST_FATE`` says.

The store is real; what is compiled is the network itself. Imports wait, for most fates need none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(fate: str) -> None:
    with Path(os.environ["TEST_BUILDS"]).open("a") as file:
        file.write(f"{sys.argv[1]}\n")
    if fate == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "late":
        time.sleep(60)
    if fate == "broken":
        sys.exit(3)
    import pytest

    from engines.provision import default_build
    from tests.engines.networks import small_student, use_fake_tensorrt

    use_fake_tensorrt(pytest.MonkeyPatch())
    default_build("fake", small_student()).run()


if __name__ == "__main__":
    main(os.environ["TEST_FATE"])
