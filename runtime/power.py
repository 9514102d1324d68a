"""Power: what an accelerator draws while it is busy, measured by NVML where there is one, or as its owner says."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

MW_PER_MJ_PER_US = 1_000_000
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

    Measured energy of a window is that of its busy time, less what the devices drew at rest during its idle time, which
    is known from windows without any step; until there was one, idle time counts as drawing nothing.
    """

    def __init__(self, power_w: float, open_meter: Callable[[], Meter] | None = None) -> None:
        """`power_w` is what each accelerator is said to draw; `open_meter` is tried until it gives one, if at all."""
        self._estimate_mw = round(power_w * 1_000)
        self._open_meter = open_meter
        self._meter: Meter | None = None
        self._last: Reading | None = None
        self._rest_mw: int | None = None
        self.busy_permille = -1
        self.failure = ""

    @property
    def source(self) -> Source:
        """Where the last price came from."""
        if self._last is not None:
            return "measured"
        return "estimated" if self._estimate_mw else ""

    def price_mw(self, busy_us: int, wall_us: int) -> int:
        """What a busy accelerator drew in the window that ends now, in milliwatts.

        The window had so much busy time of all accelerators together and took `wall_us`; without busy time in it the
        price is of no use.
        """
        before, now = self._last, self._read()
        self._last = now
        if now is None:
            return self._estimate_mw
        if before is None or now.energy_mj < before.energy_mj:
            return self._estimate_mw
        used_mj = now.energy_mj - before.energy_mj
        if not busy_us:
            if wall_us > 0:
                drawn_mw = used_mj * MW_PER_MJ_PER_US // wall_us
                # The least, because a long step shows only in the window in which it ends.
                self._rest_mw = drawn_mw if self._rest_mw is None else min(self._rest_mw, drawn_mw)
            return 0
        idle_mj = max(0, wall_us - busy_us) * (self._rest_mw or 0) // MW_PER_MJ_PER_US
        return max(0, used_mj - idle_mj) * MW_PER_MJ_PER_US // busy_us

    def _read(self) -> Reading | None:
        if self._open_meter is None:
            return None
        try:
            if self._meter is None:
                self._meter = self._open_meter()
            reading = self._meter.read()
        except PowerUnavailable as unavailable:
            self._meter, self.failure, self.busy_permille = None, str(unavailable), -1
            return None
        self.failure, self.busy_permille = "", reading.busy_permille
        return reading
