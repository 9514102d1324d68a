"""Replicas: several gateways as real processes over one home, one ledger process, one simulator and one shared book."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from gateway.config_file import load
from gateway.home import Home
from gateway.keys import KeyStore
from gateway.supervisor import Part, parts_of, tail
from ledger.client import LedgerClient
from ledger.client import running as running_ledger
from tests.e2e import nest
from tests.e2e.deployment import eventually
from tests.load.instance import Instance, InstanceFailed

NAMES = ("a", "b", "c")
READY_S = 60.0
POLL_S = 0.05


class Replica(Instance):
    """`bursar serve --replica NAME`, which can be killed and started again."""

    def __init__(self, name: str, home: Home, config: Path) -> None:
        super().__init__(home.path, config)
        self.name = name
        self._run = home.run_file(f"gateway-{name}")
        serve = ["serve", "--home", str(home.path), "--config", str(config), "--replica", name]
        argv = [sys.executable, "-m", "gateway", *serve, "--port", "0", "--admin-port", "0"]
        self._part = Part(f"gateway-{name}", argv, home.logs / f"gateway-{name}.log")

    def start(self) -> None:
        """Start it and wait until it serves; raises InstanceFailed."""
        self._part.start()
        deadline_s = time.monotonic() + READY_S
        while not self._is_ready():
            if self._part.has_died() or time.monotonic() > deadline_s:
                raise InstanceFailed(f"{self._part.name} did not come up: {tail(self._part.log_path)}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """End it with SIGKILL; it leaves its run file and its holds."""
        assert self._part.process is not None, "killing follows starting"
        os.kill(self._part.process.pid, signal.SIGKILL)
        self._part.process.wait()

    def stop(self) -> None:
        """End it as an operator would, where it runs."""
        self._part.stop()

    def open_holds(self) -> int:
        """How many holds are open here."""
        return int(self.ask("/admin/holds")["open"])

    def _is_ready(self) -> bool:
        if not self._run.exists():
            return False
        run = json.loads(self._run.read_text(encoding="utf-8"))
        assert self._part.process is not None
        if run["pid"] != self._part.process.pid:
            return False  # the one that was killed said this
        self.gateway_pid = run["pid"]
        self.url = f"http://{run['host']}:{run['port']}"
        self.admin_url = f"http://{run['admin_host']}:{run['admin_port']}"
        try:
            self.page(f"{self.url}/readyz")
        except InstanceFailed:
            return False
        return True


class Replicas:
    """The replicas `a`, `b` and `c` with all that they share, while the context lasts; each caller of the nest has
    one of the `secrets`.
    """

    def __init__(self, home: Path, config: Path) -> None:
        self.home = Home(home)
        self.of = {name: Replica(name, self.home, config) for name in NAMES}
        self.secrets: list[str] = []
        parts = parts_of(load(config).config, config, self.home, [])
        self._shared = [part for part in parts if not part.name.startswith("gateway")]

    def __enter__(self) -> Self:
        try:
            # Before any replica reads the file of keys.
            keys = KeyStore(self.home.keys)
            self.secrets = [keys.create(org="acme", team=each.team, app=each.app)[1] for each in nest.CALLERS]
            for part in self._shared:
                self._start(part)
            first, *others = self.of.values()
            first.start()  # it makes the home's admin key, which the others find
            with ThreadPoolExecutor(len(others)) as starting:
                list(starting.map(Replica.start, others))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def streams(self, *, ignore_eos: bool) -> Iterator[dict[str, Any]]:
        """The thousand streams of the nest, as a crowd takes them."""
        for index, body in nest.bodies(ignore_eos=ignore_eos):
            yield {"secret": self.secrets[index], "body": body}

    def flushed(self) -> LedgerClient:
        """The ledger, with all that is in every replica's journal now."""
        ledger = eventually(lambda: running_ledger(self.home.path), "the ledger process answers")
        ledger.flush()
        return ledger

    def _start(self, part: Part) -> None:
        part.start()
        deadline_s = time.monotonic() + READY_S
        while self.home.read_run(part.name) is None:
            if part.has_died() or time.monotonic() > deadline_s:
                raise InstanceFailed(f"{part.name} did not come up: {tail(part.log_path)}")
            time.sleep(POLL_S)

    def _stop(self) -> None:
        with ThreadPoolExecutor(len(NAMES)) as stopping:
            list(stopping.map(Replica.stop, self.of.values()))
        for part in reversed(self._shared):
            part.stop()


def write_config(path: Path, book_url: str, *, hold_ttl_s: int, time_scale: float) -> dict[str, int]:
    """The nest with as many times the room as there are replicas, on a shared book; returns its limits by budget."""
    nest.write_config(path, hold_ttl_s=hold_ttl_s, time_scale=time_scale)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["book"] |= {"url": book_url, "replicas": len(NAMES)}
    for budget in config["budgets"]:
        budget["limit"] *= len(NAMES)
    (runtime,) = config["runtimes"]
    for knob in ("max_num_seqs", "max_waiting", "num_blocks"):
        runtime["sim"][knob] *= len(NAMES)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return {budget["id"]: budget["limit"] for budget in config["budgets"]}
