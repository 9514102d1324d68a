"""Power: what an accelerator draws while it is busy, measured by NVML where there is one, or as its owner says."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

MW_PER_MJ_PER_US = 1_000_000
# A minute of readings: of a step that takes longer, the energy of the last minute is known.
READINGS_MAX = 256
Source = Literal["measured", "estimated", ""]


class PowerUnavailable(Exception):
    """NVML is not there, or has no such device; the message says which."""


class Reading(NamedTuple):
    """What the devices have used since they were started, together, and how busy they say they are on average."""

    energy_mj: int
    busy_permille: int


class Meter(Protocol):
    """Reads some devices; raises PowerUnavailable."""

    def read(self) -> Reading:
        """What the devices say now."""


class Nvml:
    """Some devices by their number in NVML; `library` is the module `pynvml` or what behaves like it."""

    @classmethod
    def open(cls, devices: Sequence[int]) -> "Nvml":
        """The devices of this machine; PowerUnavailable."""
        # Its import takes a twentieth of a second, for which gateways without accelerators need not wait.
        import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415

        return cls(devices, pynvml)

    def __init__(self, devices: Sequence[int], library: Any) -> None:
        self._library = library
        try:
            library.nvmlInit()
            self._handles = [library.nvmlDeviceGetHandleByIndex(device) for device in devices]
        except library.NVMLError as error:
            raise PowerUnavailable(f"NVML does not give devices {', '.join(map(str, devices))}: {error}") from error

    def read(self) -> Reading:
        """The sums over the devices; their utilisation is that of the last second at most."""
        library = self._library
        try:
            energy_mj = sum(library.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)
            busy = [library.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]
        except library.NVMLError as error:
            raise PowerUnavailable(f"NVML does not answer: {error}") from error
        return Reading(int(energy_mj), 10 * sum(busy) // len(busy))


class Power:
    """The price of busy time in energy, window by window.

    A window in which no step ended is part of that in which the next one does, back to the reading before that step
    began. What the devices drew before is what they draw at rest, which is not charged; until that was seen, idle time
    counts as drawing nothing.
    """

    def __init__(self, power_w: float, open_meter: Callable[[], Meter] | None = None, devices: int = 1) -> None:
        """`power_w` is what each accelerator is said to draw; `open_meter` is tried until it gives one, if at all."""
        self._estimate_mw = round(power_w * 1_000)
        self._open_meter = open_meter
        self._devices = devices
        self._meter: Meter | None = None
        # Unix microseconds, and the energy used by then.
        self._readings: deque[tuple[int, int]] = deque(maxlen=READINGS_MAX)
        self._rest_mw = 0
        self.source: Source = "estimated" if self._estimate_mw else ""
        self.busy_permille = -1
        self.failure = ""

    def price_mw(self, busy_us: int, begin_us: int, now_us: int, *, is_late: bool = False) -> int:
        """What a busy accelerator drew while the steps were done that ended since the last call, in milliwatts.

        They took `busy_us` of all accelerators together, the first of them from `begin_us`; without busy time the price
        is of no use, and 0. With `is_late` there is more to be told than was read: nobody knows how much of it was done
        while something was measured, so it is priced by the owner's word. `source` says where the price came from.
        """
        self._read(now_us)
        if is_late:
            self._readings.clear()
        if not busy_us:
            return 0
        if len(self._readings) < 2:
            self.source = "estimated" if self._estimate_mw else ""
            return self._estimate_mw
        used_mj = self._used_mj(busy_us, begin_us)
        while len(self._readings) > 1:
            self._readings.popleft()
        self.source = "measured"
        return used_mj * MW_PER_MJ_PER_US // busy_us

    def _used_mj(self, busy_us: int, begin_us: int) -> int:
        """The energy of busy time since the last reading before it; what was used before is what rest takes."""
        readings = self._readings
        quiet_us, quiet_mj = readings[0]
        while len(readings) > 2 and readings[1][0] <= begin_us:
            readings.popleft()
        (from_us, from_mj), (to_us, to_mj) = readings[0], readings[-1]
        if from_us > quiet_us:
            self._rest_mw = (from_mj - quiet_mj) * MW_PER_MJ_PER_US // (from_us - quiet_us)
        idle_us = max(0, (to_us - from_us) * self._devices - busy_us)
        return max(0, to_mj - from_mj - idle_us * self._rest_mw // (self._devices * MW_PER_MJ_PER_US))

    def _read(self, now_us: int) -> None:
        if self._open_meter is None:
            return
        try:
            if self._meter is None:
                self._meter = self._open_meter()
            reading = self._meter.read()
        except PowerUnavailable as unavailable:
            self._meter, self.failure, self.busy_permille = None, str(unavailable), -1
            self._readings.clear()
            return
        self.failure, self.busy_permille = "", reading.busy_permille
        readings = self._readings
        if readings and (now_us < readings[-1][0] or reading.energy_mj < readings[-1][1]):
            readings.clear()  # a clock that was put back, or a device that was reset
        readings.append((now_us, reading.energy_mj))
