"""Energy: measured where NVML has the devices, estimated where it has not, and never both at once."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.power import Nvml, Power, PowerUnavailable, Reading


class FakeNvml:
    """Behaves like pynvml over devices that use what the test says; nothing here has met a real one."""

    class NVMLError(Exception):
        pass

    def __init__(self, devices: int) -> None:
        self.energy_mj = [1_000 * (device + 1) for device in range(devices)]
        self.busy_percent = [0] * devices
        self.is_away = False

    def nvmlInit(self) -> None:  # noqa: N802 NVML's name, here and below
        self._answer()

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index >= len(self.energy_mj):
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self._answer()
        return self.energy_mj[handle]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.busy_percent[handle])

    def _answer(self) -> None:
        if self.is_away:
            raise self.NVMLError("Driver Not Loaded")


def test_what_devices_use_is_added_up() -> None:
    fake = FakeNvml(3)
    fake.busy_percent = [0, 40, 81]
    assert Nvml([1, 2], fake).read() == Reading(5_000, 605)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(PowerUnavailable, match="devices 0, 7: Invalid Argument"):
        Nvml([0, 7], FakeNvml(1))


S = 1_000_000


def test_without_a_meter_the_owners_word_counts() -> None:
    power = Power(312.5)
    assert (power.price_mw(10, 0, 20), power.source, power.busy_permille) == (312_500, "estimated", -1)
    assert (Power(0).price_mw(10, 0, 20), Power(0).source) == (0, "")


def test_busy_time_is_charged_what_was_measured_less_what_rest_takes() -> None:
    fake = FakeNvml(1)
    power = Power(0, lambda: Nvml([0], fake))
    power.price_mw(0, S, S)
    fake.energy_mj[0] += 70_000  # in a second without a step: 70 W
    power.price_mw(0, 2 * S, 2 * S)
    fake.energy_mj[0] += 35_000 + 200_000  # half a second at rest, half a second at 400 W
    assert power.price_mw(S // 2, 2 * S + S // 2, 3 * S) == 400_000
    fake.energy_mj[0] += 10_000  # less than rest alone would have taken
    assert power.price_mw(1, 4 * S - 1, 4 * S) == 0
    assert power.source == "measured"


@pytest.mark.parametrize("step_us", [20_000, 400_000, 600_000, S, 2 * S])
def test_steps_that_end_in_few_polls_have_all_of_the_energy_and_are_not_taken_for_rest(step_us: int) -> None:
    """An engine that computes without a pause at 500 W, after ten seconds at 60 W; it is looked at each quarter."""
    fake = FakeNvml(1)
    power = Power(400, lambda: Nvml([0], fake))
    for now_us in range(0, 10 * S + 1, S // 4):
        fake.energy_mj[0] = 60 * now_us // 1_000
        power.price_mw(0, now_us, now_us)
    told_us, charged_nj = 10 * S, 0
    for now_us in range(told_us + S // 4, 112 * S, S // 4):
        fake.energy_mj[0] = 60 * 10_000 + 500 * (now_us - 10 * S) // 1_000
        busy_us = (now_us - told_us) // step_us * step_us
        charged_nj += busy_us * power.price_mw(busy_us, told_us, now_us)
        told_us += busy_us
    used_nj = 500_000 * (told_us - 10 * S)
    assert abs(charged_nj - used_nj) < used_nj // 50


def test_what_is_told_late_has_the_owners_word_and_no_energy_of_now() -> None:
    fake = FakeNvml(1)
    power = Power(250, lambda: Nvml([0], fake))
    power.price_mw(0, S, S)
    fake.energy_mj[0] += 100_000
    assert (power.price_mw(90 * S, 0, 2 * S, is_late=True), power.source) == (250_000, "estimated")
    fake.energy_mj[0] += 100_000
    assert (power.price_mw(90 * S, 0, 3 * S), power.source) == (250_000, "estimated")
    fake.energy_mj[0] += 100_000
    assert (power.price_mw(S, 3 * S, 4 * S), power.source) == (100_000, "measured")


def test_a_meter_that_goes_away_or_was_reset_leaves_the_owners_word() -> None:
    fake = FakeNvml(1)
    opened: Iterator[int] = iter(range(100))
    power = Power(250, lambda: (next(opened), Nvml([0], fake))[1])
    fake.is_away = True
    assert (power.price_mw(10, 0, 10), power.source) == (250_000, "estimated")
    assert "Driver Not Loaded" in power.failure
    fake.is_away = False
    assert power.price_mw(10, 10, 20) == 250_000, "the first reading is the beginning of the first window"
    assert (power.source, power.failure) == ("estimated", "")
    fake.energy_mj[0] += 1
    assert (power.price_mw(10, 20, 30), power.source) == (100_000, "measured")
    fake.energy_mj[0] = 0
    assert (power.price_mw(10, 30, 40), power.source) == (250_000, "estimated")
    assert next(opened) == 2
