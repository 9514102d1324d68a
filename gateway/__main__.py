"""`bursar`, or `python -m gateway`: the command line, on the compiled modules where there are any."""

import sys

from gateway import compiled

try:
    compiled.use()
except compiled.NotCompiled as error:
    sys.exit(f"bursar: {error}")

from gateway.cli import main  # noqa: E402  what it imports is found compiled only from here on

if __name__ == "__main__":
    main()
