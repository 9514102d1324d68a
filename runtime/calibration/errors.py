"""How calibration can fail; every message says what to do and is safe to show.

CalibrationError
├── EngineLost      the engine stopped answering in the middle, or did not end in time
├── EngineRefused   it answered a request with an error, or with other than what was asked for
├── ClientLate      the client that sends the load was the bottleneck, so its times say nothing of the engine
├── NothingSeen     the engine told nothing of its steps
├── Unfit           what was seen is too little, or cannot be fitted
├── BadCalibration  a file holds no calibration that this version can use, or one of another engine
└── OutsideRange    a run goes beyond what the calibration saw, and was told not to
"""


class CalibrationError(Exception):
    """A calibration cannot be made or used."""


class EngineLost(CalibrationError):
    """The engine stopped answering in the middle, or did not end in time; nothing was kept."""


class EngineRefused(CalibrationError):
    """The engine answered with an error, or with another number of tokens than was asked for."""


class ClientLate(CalibrationError):
    """The client could not send or read in time, so what it measured is its own slowness."""


class NothingSeen(CalibrationError):
    """The engine's telemetry says nothing of its steps, or not of those that were asked for."""


class Unfit(CalibrationError):
    """The steps seen are too few, or cannot be fitted."""


class BadCalibration(CalibrationError):
    """A file holds no calibration that can be used here."""


class OutsideRange(CalibrationError):
    """A run goes beyond the ranges that the calibration saw."""
