"""Settings of all tests: on a shared machine a slow moment is not a failure, so hypothesis sets no deadline."""

import os

from hypothesis import settings

from gateway import compiled

# Before any test module imports what may be compiled. Without the switch, tests see the sources.
if os.environ.get(compiled.SWITCH) == "1":
    compiled.use()

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
