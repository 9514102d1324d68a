"""The one way in which a benchmark fails."""


class MeasurementError(Exception):
    """A measurement could not be made or was not valid; no number may be printed for it."""
