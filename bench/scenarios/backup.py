"""Back a gateway up under load and restore it: what it takes, and costs senders.

The log is filled first. In each window the same load runs twice: alone, and while `aether backup`
copies the data. At the end the last backup is restored and a gateway is started on it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from statistics import median
from time import perf_counter, perf_counter_ns, sleep
from typing import Any, Final

from bench.goals import Goal
from bench.numbered import filler
from bench.scenarios.routed import Routed
from bench.world import PATIENCE_SECONDS, ScenarioFailed

FILL_BYTES: Final = 16 * 1024
SLICE_S: Final = 0.02
GIB: Final = 1024**3
AETHER: Final = (sys.executable, "-m", "aether_trio")


class Backup(Routed):
    """Scenario: routed messages, without and with a backup under way."""

    name = "backup"
    doc = "routed 1:1 while `aether backup` copies 1 GiB of data, and the restore of it"
    gated = ()
    one_transport = True
    in_flight = 4

    def prepare(self) -> None:
        super().prepare()
        data_dir = self.world.data_dir
        if data_dir is None:
            raise ScenarioFailed("the gateway of `backup` is always started here, as its files are copied")
        self._data_dir = data_dir
        self._target = data_dir.parent / "backup"
        self._rates: dict[bool, list[float]] = {False: [], True: []}
        self._late_ns: dict[bool, list[int]] = {False: [], True: []}
        self._seconds: list[float] = []
        self._size = 0
        self._fill()

    def _fill(self) -> None:
        """Send long messages until the log has the wanted size."""
        short, self.filler = self.filler, filler(FILL_BYTES)
        prefixes = self.prefixes
        self.prefixes = [
            self.world.transport.publication_prefix(self.world.topic("receiver", n), FILL_BYTES, b"")
            for n in range(self.options.pairs)
        ]
        while self._stored() < self.options.backup_mib * 1024**2:
            super().window(0.5)
            self.latencies.drop_window()
        self.filler, self.prefixes = short, prefixes

    def _stored(self) -> int:
        return sum(path.stat().st_size for path in self._data_dir.glob("*.db"))

    def window(self, seconds: float) -> int:
        before = self.received
        self._phase(False, seconds, None)
        shutil.rmtree(self._target, ignore_errors=True)
        began = perf_counter()
        command = [*AETHER, "backup", str(self._target), "--data-dir", str(self._data_dir), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as backup:
            self._phase(True, seconds, backup)
            out, err = backup.communicate()
        if backup.returncode:
            raise ScenarioFailed(f"the backup failed: {err.decode()[-500:]}")
        self._size = sum(entry["size"] for entry in json.loads(out)["databases"])
        self._seconds.append(self._ended - began)
        return self.received - before

    def _phase(self, backed_up: bool, seconds: float, backup: subprocess.Popen[bytes] | None) -> None:
        """Run the load for a while, or until the backup ends; note its rate and delays."""
        self.latencies.drop_window()
        before, start, now = self.received, perf_counter(), perf_counter_ns()
        for pair in range(self.options.pairs):
            for _ in range(self.in_flight):
                self.send(pair, now)
        self.running = True
        while perf_counter() < start + PATIENCE_SECONDS:
            self.world.loop.run(perf_counter() + SLICE_S)
            if perf_counter() > start + seconds if backup is None else backup.poll() is not None:
                break
        self._ended = perf_counter()
        self._rates[backed_up].append((self.received - before) / (self._ended - start))
        self.running = False
        self.drain(lambda: self.outstanding)
        late = sorted(self.latencies.pending)
        self._late_ns[backed_up] += [late[len(late) * 99 // 100], late[-1]]

    def finish(self) -> None:
        super().finish()
        restored = self._data_dir.parent / "restored"
        began = perf_counter()
        subprocess.run(
            [*AETHER, "restore", str(self._target), "--data-dir", str(restored)], check=True, capture_output=True
        )
        restore_s = perf_counter() - began
        start_s = self._started(restored)
        size_gib = self._size / GIB
        without, beside = median(self._rates[False]), median(self._rates[True])
        self.goals += [
            Goal("size of the backup", size_gib * 1024, "MiB"),
            Goal("backup, for a GiB", median(self._seconds) / size_gib, "s"),
            Goal("restore, for a GiB", restore_s / size_gib, "s"),
            Goal("restore", restore_s, "s"),
            Goal("start on the restored data", start_s, "s"),
            Goal("messages a second without a backup", without),
            Goal("messages a second beside one", beside),
            Goal("slower by", 100 * (1 - beside / without), "%"),
        ]
        for backed_up, how in ((False, "without a backup"), (True, "beside one")):
            self.goals += [
                Goal(f"p99 {how}", median(self._late_ns[backed_up][::2]) / 1e6, "ms"),
                Goal(f"longest {how}", median(self._late_ns[backed_up][1::2]) / 1e6, "ms"),
            ]

    def _started(self, data_dir: os.PathLike[str]) -> float:
        """Start a gateway on restored data; return the seconds until it serves."""
        ready = self._data_dir.parent / "restored.json"
        arguments = ["--port", "0", "--ops-port", "0", "--data-dir", str(data_dir), "--ready-file", str(ready)]
        began = perf_counter()
        with subprocess.Popen(
            [*AETHER, "dev", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as gateway:
            while not ready.exists() and gateway.poll() is None and perf_counter() < began + PATIENCE_SECONDS:
                sleep(SLICE_S)
            took = perf_counter() - began
            if not ready.exists():
                gateway.kill()
                raise ScenarioFailed("no gateway starts on the restored data")
            gateway.terminate()
        return took

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"mib": self.options.backup_mib}
