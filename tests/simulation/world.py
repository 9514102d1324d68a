"""A simulated deployment: one gateway, one ledger process and one store, driven through faults by a seed."""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

from domain import ids
from domain.ids import uuid7
from gateway.errors import Refusal
from ledger import recovery
from ledger.budgets import Budget
from ledger.disk import Disk
from ledger.journal import JournalError, JournalFailed, JournalFull
from ledger.shipper import BATCH_AGE_S, Shipper
from ledger.windows import parse_window
from tests.simulation.audit import Audit, Violation
from tests.simulation.clock import Clock
from tests.simulation.disk import Machine, ProcessDisk
from tests.simulation.faults import Killed, Plan
from tests.simulation.gateway import JOURNALS, US, Rebuild, SimGateway
from tests.simulation.store import Connection, Tables, lost

COMMIT_US = 10_000
SWEEP_US = 500_000
SHIP_US = int(BATCH_AGE_S * US)
RESTARTS_MAX = 40
_FALLIBLE = frozenset({"sync", "sync_directory", "allocate", "rename", "open", "create", "truncate", "map"})

BUDGETS = (
    Budget("all", "finance", (("org", "acme"),), "list_cost_nusd", 3_000_000, parse_window("total")),
    Budget("team", "finance", (("team", "*"),), "tokens", 9_000, parse_window("month")),
    Budget("rate", "finance", (("team", "*"), ("app", "*")), "tokens", 1_500, parse_window("rolling:60s")),
    Budget("calls", "finance", (("key", "*"),), "requests", 20, parse_window("minute")),
    Budget("slots", "finance", (("app", "*"),), "concurrency", 6, parse_window("total")),
    Budget("watched", "finance", (("app", "*"),), "output_tokens", 400, parse_window("day"), "soft"),
)


@dataclass(frozen=True)
class Planted:
    """Bugs that a run can be given, to see that it finds them."""

    disk: Callable[[ProcessDisk], Disk] = lambda disk: disk
    store: Callable[[Connection], Connection] = lambda connection: connection
    rebuild: Rebuild = recovery.rebuild


SOUND = Planted()


class World:
    """One run: everything that happens in it follows from its seed."""

    def __init__(self, seed: int, planted: Planted = SOUND) -> None:
        self.dice = random.Random(seed)
        self.plan = Plan.drawn(self.dice)
        self._seed = seed
        self.planted = planted
        self.clock = Clock()
        self.machine = Machine(self.dice, self.clock.wall_s, self._strike)
        self.tables = Tables()
        self.budgets = BUDGETS
        self.gateway: SimGateway | None = None
        self.shipper: Shipper | None = None
        self._disks: dict[str, ProcessDisk] = {}
        self._due = {"commit": 0, "sweep": 0, "ship": 0}
        self._calm = False
        self._requests = 0
        self.trace: list[str] = []
        self.audit = Audit(self)

    def run(self) -> None:
        """Live through the plan's steps, then heal everything and look whether it all adds up. Violation when not."""
        ids._random.seed(self._seed)
        logging.disable(logging.ERROR)
        try:
            # Identifiers for which nobody names a time take the system's.
            with patch.object(time, "time_ns", lambda: self.clock.wall_us() * 1000):
                for _ in range(self.plan.steps):
                    self._step()
                self._heal()
                self.audit.at_rest()
        finally:
            logging.disable(logging.NOTSET)

    def _step(self) -> None:
        self._weather_of_the_step()
        act = self.dice.choice(
            (self._ask, self._ask, self._ask, self._ask, self._end, self._end, self._end, self._rare)
        )
        if self.audit.has_failed and self.gateway is not None and self.dice.random() < 0.2:
            self._kill(Killed("gateway"))
        if self.gateway is None and self.dice.random() < 0.5:
            self._open_gateway()
        elif self.gateway is not None:
            self._gateway_does(act)
        self.pass_time(self.dice.choice((0, 0, 100, 3_000, 12_000, 300_000, 2_500_000)))

    def _weather_of_the_step(self) -> None:
        plan, dice = self.plan, self.dice
        if dice.random() < plan.full_disk_rate:
            room_bytes = self.machine.used_bytes() + dice.randrange(plan.segment_bytes)
            self.machine.capacity_bytes = dice.choice((room_bytes, 1 << 40))
        if dice.random() < plan.clock_step_rate:
            step_us = dice.choice((-90_000_000, -2_000_000, 5_000_000, 70_000_000))
            self._say(f"the clock is set by {step_us / US:g} s")
            self.clock.step(step_us)

    def _ask(self, gateway: SimGateway) -> None:
        self._requests += 1
        request_id = uuid7(self.clock.wall_us() // 1000)
        result = gateway.ask(self.dice, request_id)
        if isinstance(result, Refusal):
            self._say(f"request {self._requests} is refused: {result.kind.code}")
        else:
            self._say(f"request {self._requests} holds {result.hold.cap}")
            self.audit.held(gateway, result.hold)

    def _end(self, gateway: SimGateway) -> None:
        if not gateway.admitted:
            return
        self._say("a request ends")
        seq = gateway.journal.tail_seq
        try:
            gateway.end(self.dice)
        except JournalFull as error:
            if gateway.journal.tail_seq == seq:
                raise Violation("a settlement found no room, although its hold had reserved it") from error

    def _rare(self, gateway: SimGateway) -> None:
        chosen = self.dice.randrange(6)
        if chosen == 0:
            gateway.grant(self.dice)
        elif chosen == 1:
            self._reconfigure(gateway)
        elif chosen == 2 and not self._calm and self.plan.kill_rate:
            raise Killed(self.dice.choice(("gateway", "ledger")))
        elif chosen == 3:
            self._stop_gateway(gateway)
        else:
            gateway.sweep()

    def _reconfigure(self, gateway: SimGateway) -> None:
        """Change a limit, or take a budget away or put it back."""
        changed = self.dice.choice(BUDGETS)
        others = tuple(budget for budget in self.budgets if budget.id != changed.id)
        limit = changed.limit * self.dice.choice((1, 2)) // self.dice.choice((1, 2))
        self.budgets = others if self.dice.random() < 0.3 else (*others, replace(changed, limit=limit))
        self._say(f"budget {changed.id} is changed")
        gateway.book.configure(self.budgets, self.clock.wall_us() // US)
        self.audit.configured()

    def _stop_gateway(self, gateway: SimGateway) -> None:
        """An orderly stop; what is in flight is left, as by a drain that takes too long."""
        self._say("the gateway stops")
        try:
            gateway.journal.close()
        except JournalFailed as error:
            self._say(f"its last fsync fails: {error}")
        self.audit.told(gateway.journal)
        self._disks.pop("gateway").die()
        self.gateway = None

    def pass_time(self, us: int) -> None:
        """Let time pass, and do what becomes due meanwhile, in order."""
        until = self.clock.us + us
        while True:
            name = min(self._due, key=self._due.__getitem__)
            if self._due[name] > until:
                break
            self.clock.us = max(self.clock.us, self._due[name])
            self._do_due(name, until)
        self.clock.us = max(self.clock.us, until)

    def _do_due(self, name: str, until: int) -> None:
        if name == "ship":
            self._due["ship"] = self.clock.us + SHIP_US
            self._ship()
        elif name == "sweep":
            self._due["sweep"] = self.clock.us + SWEEP_US
            self._gateway_does(lambda gateway: gateway.sweep())
            if self.gateway is not None:
                self.audit.swept(self.gateway)
        else:
            self._gateway_does(lambda gateway: gateway.journal.commit())
            self.audit.committed(self.gateway)
            # Nothing changes between two due acts, so the looks of the fsync thread until then are one look.
            later = min(self._due["sweep"], self._due["ship"], until + 1)
            behind = max(0, later - self.clock.us - 1) // COMMIT_US * COMMIT_US
            self._due["commit"] = self.clock.us + max(COMMIT_US, behind)

    def _gateway_does(self, act: Callable[[SimGateway], None]) -> None:
        gateway = self.gateway
        if gateway is None:
            return
        try:
            act(gateway)
        except Killed as killed:
            self._kill(killed)
        except JournalFull:
            self._say("the journal is full")
            self.audit.told(gateway.journal)
        except JournalError as error:
            self._say(f"the journal says {error}")
            self.audit.told(gateway.journal)
        else:
            if self.gateway is gateway:
                self.audit.told(gateway.journal)

    def _open_gateway(self) -> None:
        disk = self._disks["gateway"] = self.machine.process("gateway")
        self._say("a gateway starts")
        if self.dice.random() < 0.3:
            self.machine.evict()
        try:
            opened = SimGateway(
                self.plan, self.budgets, self.planted.disk(disk), self.clock.wall_us, self.planted.rebuild
            )
        except Killed as killed:
            self._kill(killed)
        except (JournalError, OSError) as error:
            self._say(f"it does not: {error}")
            disk.die()
        else:
            self.gateway = opened
            self.audit.opened(opened)

    def _ship(self) -> None:
        if self.shipper is None:
            disk = self._disks["ledger"] = self.machine.process("ledger")
            store = self.planted.store(Connection(self.tables, self._on_the_way))
            self.shipper = Shipper(
                JOURNALS,
                store,
                retention_s=self.plan.retention_s,
                monotonic=self.clock.monotonic_s,
                now=self.clock.wall_s,
                chance=self.dice.random,
                disk=self.planted.disk(disk),
            )
            self._say("a ledger process starts")
        try:
            self.shipper.round()
        except Killed as killed:
            self._kill(killed)
        else:
            self.audit.shipped(self.shipper)

    def _kill(self, killed: Killed) -> None:
        """End one process, or all of them with the machine's memory."""
        self._say(str(killed))
        dying = ("gateway", "ledger") if killed.is_power_loss else (killed.process,)
        if killed.is_power_loss:
            self.audit.power_lost()
        for name in dying:
            if name in self._disks:
                self._disks.pop(name).die()
            if name == "gateway":
                self.audit.gateway_died(self.gateway)
                self.gateway = None
            else:
                self.shipper = None
        if killed.is_power_loss:
            self.machine.lose_power()

    def _strike(self, process: str, operation: str) -> None:
        """Let a fault strike at an operation of a disk."""
        if self._calm or process == "auditor":
            return
        plan, fate = self.plan, self.dice.random()
        if fate < plan.kill_rate:
            raise Killed(process)
        if fate < plan.kill_rate + plan.power_loss_rate:
            raise Killed(process, is_power_loss=True)
        if fate < plan.kill_rate + plan.power_loss_rate + plan.eio_rate and operation in _FALLIBLE:
            self._say(f"{operation} of the {process} fails")
            if operation == "sync":
                self.audit.sync_failed()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _on_the_way(self, what: str) -> None:
        """Let a fault strike at a message between ledger process and store."""
        if self._calm:
            return
        plan, dice = self.plan, self.dice
        self._strike("ledger", what)
        if dice.random() < plan.delay_rate:
            self._while_it_takes()
        rate = plan.lost_reply_rate if what in ("reply", "view") else plan.lost_request_rate
        if dice.random() < (rate / 10 if what == "query" else rate):
            self._say(f"a {what} of the store is lost")
            raise lost(what)

    def _while_it_takes(self) -> None:
        """The gateway goes on while a message is under way; a power loss ends the ledger process too."""
        shipper = self.shipper
        for _ in range(self.dice.randrange(4)):
            self._gateway_does(self._ask if self.dice.random() < 0.5 else self._end)
            self.clock.us += self.dice.randrange(4_000)
            self._gateway_does(lambda gateway: gateway.journal.commit())
            self.audit.committed(self.gateway)
            if self.shipper is not shipper:
                raise Killed("ledger")

    def _heal(self) -> None:
        """End all faults, start what is down, let every hold run out and everything be shipped."""
        self._calm = True
        self.machine.capacity_bytes = 1 << 40
        self._say("all is well from now on")
        self.plan = replace(self.plan, retention_s=0.0)
        self._kill(Killed("ledger"))
        if self.gateway is not None and self.audit.has_failed:
            # After a failed fsync nothing is taken until a restart.
            self._kill(Killed("gateway"))
        if self.gateway is None:
            self._open_gateway()
        assert self.gateway is not None
        for _ in range(3):
            while self.gateway.admitted:
                self._gateway_does(self._end)
            self.pass_time((self.plan.hold_ttl_s + 1) * US)
        self.clock.us += self.clock.back_us
        for _ in range(4):
            self.pass_time(6 * US)

    def _say(self, what: str) -> None:
        self.trace.append(f"{self.clock.us / 1e6:12.6f} {what}")


__all__ = ["Violation", "World"]
