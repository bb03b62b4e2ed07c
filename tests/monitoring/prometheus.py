"""Asks Prometheus' rule engine (promtool) which alerts fire, by real scrapes.

A scrape is taken over HTTP from the ops port of a gateway, as Prometheus does it. `firing` lays
some of them on a time axis of minutes: the first for HEALTHY_MIN, then each other one for a while.
The fault of the last one lasts: counters go on growing by what the fault brought from the scrape
before it to it, once a minute. Unix times are moved, so that the last scrape was made at the end.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from scripts.ensure_program import PROMTOOL

MONITORING: Final = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES: Final = MONITORING / "alerts.yml"
HEALTHY_MIN: Final = 60
EACH_MIN: Final = 3
LASTS_MIN: Final = 45
INSTANCE: Final = "gateway:9090"
_TIMES: Final = ("process_start_time_seconds", "aether_certificate_expiry_timestamp_seconds")

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Scrape:
    """The series of a gateway at a moment as Prometheus stores them, with `up`."""

    series: dict[Key, float]
    counters: frozenset[str] = frozenset()
    at_s: float = field(default_factory=time.time)

    @property
    def up(self) -> bool:
        return any(name == "up" and value for (name, _), value in self.series.items())


def scrape(address: str, instance: str = INSTANCE) -> Scrape:
    """Scrape a gateway at HOST:PORT; if it does not answer, its `up` is 0."""
    target = (("instance", instance), ("job", "aether"))
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
    except OSError:
        return Scrape({("up", target): 0.0})
    finally:
        connection.close()
    series: dict[Key, float] = {("up", target): 1.0}
    counters: set[str] = set()
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            series[sample.name, tuple(sorted({**sample.labels, **dict(target)}.items()))] = sample.value
            if family.type == "counter" or (family.type == "histogram"):
                counters.add(sample.name)
    return Scrape(series, frozenset(counters))


def together(*scrapes: Scrape) -> Scrape:
    """Join the scrapes of several instances."""
    series = {key: value for one in scrapes for key, value in one.series.items()}
    return Scrape(series, frozenset().union(*(one.counters for one in scrapes)), scrapes[-1].at_s)


def alerts() -> list[dict[str, Any]]:
    """The alerts of the rules, as they are written."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool() -> str:
    path = PROMTOOL.find()
    if path is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(PROMTOOL.advice)
        pytest.skip(PROMTOOL.advice)
    return path


def run_promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool(), *arguments], input=given, capture_output=True, text=True, timeout=300, check=False
    )


def firing(directory: Path, scrapes: Sequence[Scrape], *, last_min: int = LASTS_MIN) -> set[str]:
    """Return the names of the alerts that fire at the end of the time axis."""
    names = [rule["alert"] for rule in alerts()]
    end_min = HEALTHY_MIN + EACH_MIN * (len(scrapes) - 2) + last_min if len(scrapes) > 1 else HEALTHY_MIN
    keys = sorted({key for one in scrapes for key in one.series})
    lines = [{"series": _selector(key), "values": " ".join(_values(key, scrapes, end_min))} for key in keys]
    expected = [
        {
            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0 or vector(0)',
            "eval_time": f"{end_min}m",
            "exp_samples": [{"labels": "{}", "value": 0}],
        }
        for name in names
    ]
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": lines, "promql_expr_test": expected}],
    }
    file = directory / "test.yml"
    file.write_text(yaml.safe_dump(test, width=10**6))
    done = run_promtool("test", "rules", str(file))
    # It prints the expressions that are not as expected.
    found = {name for name in names if f'"{name}"' in (done.stdout + done.stderr).replace("\\", "")}
    assert bool(found) == (done.returncode != 0), done.stdout + done.stderr
    return found


def _selector(key: Key) -> str:
    name, labels = key
    quoted = ((label, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for label, value in labels)
    pairs = ",".join(f'{label}="{value}"' for label, value in quoted)
    return f"{name}{{{pairs}}}"


def _values(key: Key, scrapes: Sequence[Scrape], end_min: int) -> Iterable[str]:
    """The values of a series at each minute; "_" where it is absent."""
    counts = any(key[0] in one.counters for one in scrapes)
    shift = end_min * 60 - scrapes[-1].at_s if key[0] in _TIMES else 0.0
    for minute in range(end_min + 1):
        place = min((max(minute - HEALTHY_MIN, -EACH_MIN) + EACH_MIN) // EACH_MIN, len(scrapes) - 1)
        one = scrapes[place]
        if key not in one.series:
            yield "_"
            continue
        value = one.series[key] + shift
        if counts and place and place == len(scrapes) - 1:
            before = scrapes[place - 1].series.get(key, 0.0)
            minutes = minute - HEALTHY_MIN - EACH_MIN * (place - 1)
            value += max(one.series[key] - before, 0.0) * minutes
        yield repr(value)
