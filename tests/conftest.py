"""Settings of all tests: on a shared machine a slow moment is not a failure, so hypothesis sets no deadline."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
