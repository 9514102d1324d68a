"""`bursar`, or `python -m gateway`: the command line, on the compiled modules where there are any."""

import sys

from gateway import compiled

try:
    compiled.use()
except compiled.NotCompiled as error:
    sys.stderr.write(f"bursar: {error}\n")
    sys.exit(3)  # what else `bursar` answers when something that it needs is away

# What this imports is found compiled only from here on.
from gateway.cli import main

if __name__ == "__main__":
    main()
