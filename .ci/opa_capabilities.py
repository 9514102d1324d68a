"""Writes deploy/opa/capabilities.json: what a bundle may use so that OPA and the embedded engine can serve it.

It is made of OPA's own list and of `FORBIDDEN_BUILTINS`; a test makes it again and compares.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This folder leaves the path: a file in it is called redis, as the client is.
sys.path[0] = str(ROOT)

from policy.opa_build import capabilities  # noqa: E402  the root has to be on the path first
from policy.port import BundleError  # noqa: E402  as above
from tests import opa_server  # noqa: E402  as above

FILE = ROOT / "deploy" / "opa" / "capabilities.json"


def main() -> int:
    """0 when it is written, 3 when there is no OPA that could say what it can."""
    try:
        FILE.write_bytes(capabilities(str(opa_server.binary())))
    except (opa_server.OpaMissing, BundleError) as error:
        sys.stderr.write(f"{error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
