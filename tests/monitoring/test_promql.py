"""Each PromQL of dashboard and alerts is valid, and asks for what a scrape has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import trio
import yaml
from click.testing import CliRunner

from aether_trio.cli.app import app
from aether_trio.config import all_keys
from aether_trio.telemetry.families import FAMILIES
from scripts import list_metrics
from tests.helpers.core import agent, barrier, connect, message_to, task
from tests.helpers.postgres import PostgresServer
from tests.monitoring.gateways import busy, running, scraped
from tests.monitoring.prometheus import MONITORING, RULES, Key, alerts, run_promtool
from tests.security.certificates import Authority
from tests.services.tasks.peers import bury, create

DASHBOARD = MONITORING / "dashboard.json"
MANUAL = Path(__file__).parents[2] / "docs" / "monitoring.md"
ROWS = ("Traffic", "Latency", "Sessions", "Tasks", "Agents", "Storage", "Cluster", "Access and audit", "Process")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, legend) of all PromQL; what Grafana fills in is filled in."""
    for rule in alerts():
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())
    for panel in panels():
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "$" not in text, "another variable"
            yield panel["title"], text, target["legendFormat"]


def asked(expression: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that an expression names."""
    metrics: set[str] = set()
    labels: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            metrics.add(node.name)
            labels.update(matcher.name for matcher in node.matchers.matchers)
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            labels.update(modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return metrics, labels


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> dict[str, set[str]]:
    """The label names of each series that gateways with traffic showed, by its name."""
    storage = {"database": postgres_server.dsn(postgres_server.new_database())}
    found: dict[str, set[str]] = {}
    for sections in ({}, {"storage": storage}, {"tls": Authority(tmp_path_factory.mktemp("tls")).tls}):
        for name, labels in trio.run(seen, tmp_path_factory.mktemp("gateway"), sections):
            found.setdefault(name, set()).update(label for label, _ in labels)
    return found


async def seen(directory: Path, sections: dict[str, Any]) -> Iterable[Key]:
    """The series of a gateway that has seen traffic of all kinds."""
    async with running(directory, **sections) as gateway:
        await busy(gateway)
        host, _, port = gateway.address.rpartition(":")
        for said in (
            b"nonsense\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense",
            b"GET /nothing HTTP/1.1\r\n\r\n",
        ):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(said)
                await stream.send_eof()
                async for _ in stream:
                    pass
        async with connect(gateway.core, agent("w", "boss", "1")) as boss, connect(gateway.core, task("w", "i2")):
            await create(boss, target_implementation="waits")
            await bury(boss)
            boss.send(message_to("ag::w::away::1", b"x"))
            await barrier(boss)
            return (await scraped(gateway)).series


def test_every_expression_asks_for_what_is_there(series: dict[str, set[str]]) -> None:
    missing: list[tuple[str, str]] = []
    count = 0
    for where, expression, legend in expressions():
        count += 1
        metrics, labels = asked(expression)
        known = set().union(*(series.get(name, set()) for name in metrics))
        missing += [(where, name) for name in metrics if name not in series]
        missing += [(where, label) for label in labels if label not in known]
        used = re.findall(r"\$labels\.(\w+)", legend) or re.findall(r"\{\{(\w+)\}\}", legend)
        missing += [(where, f"legend {label}") for label in used if label not in known | {"job"}]
    assert not missing, missing
    assert count > 80


def test_what_a_legend_names_is_left_after_aggregation() -> None:
    for where, expression, legend in expressions():
        by = re.match(r"(?:sum|max|count) by \(([\w, ]+)\)", expression)
        if by:
            names = {name.strip() for name in by[1].split(",")}
            used = re.findall(r"\$labels\.(\w+)", legend) or re.findall(r"\{\{(\w+)\}\}", legend)
            assert set(used) <= names, where


def test_a_wrong_metric_and_a_wrong_label_would_be_found() -> None:
    assert asked('sum by (a) (rate(x{b="1"}[5m])) > on (a) y') == ({"x", "y"}, {"a", "b"})
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse("sum by (rate(x[5m])")


def test_a_counter_is_only_used_by_its_growth() -> None:
    for where, expression, _ in expressions():
        for name in re.findall(r"\b(aether_\w+_total)\b", expression):
            assert re.search(rf"(?:rate|increase)\({name}", expression), (where, name)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_what_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert all(len(text) > 10 for text in rule["annotations"].values())
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/monitoring.md"
    assert anchor == rule["alert"].lower()
    entry = MANUAL.read_text().partition(f"\n### {rule['alert']}\n")[2].partition("\n#")[0]
    assert len(entry) > 150, "its entry in the runbook"
    for heading in ("**Means:**", "**Look at:**", "**Do:**"):
        assert heading in entry


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    entries = set(re.findall(r"^### (Aether\w+)$", MANUAL.read_text(), re.MULTILINE))
    assert entries == {rule["alert"] for rule in alerts()}


def test_the_dashboard_has_the_rows_and_no_panel_lies_on_another() -> None:
    titles = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert set(ROWS) <= set(titles)
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not mine & cells, panel["title"]
        cells |= mine
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
    manual = MANUAL.read_text()
    assert [title for title in titles if f"| {title} |" not in manual] == []


def test_prometheus_takes_the_files() -> None:
    done = run_promtool("check", "config", str(MONITORING / "prometheus.yml"))
    assert done.returncode == 0, done.stderr
    assert f"{len(alerts())} rules found" in done.stdout
    assert yaml.safe_load(RULES.read_text()).keys() == {"groups"}


async def test_promtool_finds_nothing_wrong_with_a_scrape(tmp_path: Path) -> None:
    async with running(tmp_path, ops={"workspace_label": True}) as gateway:
        await busy(gateway)
        body = (await gateway.core.metrics.scrape())[1].decode()
    assert body.count("\n") > 400
    done = await trio.to_thread.run_sync(lambda: run_promtool("check", "metrics", given=body))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_metric_of_the_table_was_shown(series: dict[str, set[str]]) -> None:
    names = {name.removesuffix("_bucket") for name in series}
    assert {name for name in FAMILIES if name not in names} == set()


def test_the_table_of_the_manual_is_current() -> None:
    text = MANUAL.read_text()
    assert list_metrics.page(text) == text, "run scripts/list_metrics.py --write"
    assert text.count("\n| `aether_") == len(FAMILIES)


def test_every_metric_that_a_page_names_is_in_the_table() -> None:
    other = {"aether_trio", "aether_grpc"}  # packages
    named = {
        (page.name, name)
        for page in MANUAL.parent.glob("*.md")
        for name in re.findall(r"`(aether_[a-z]+_[a-z_]+[a-z])(?:\{[^`]*)?`", page.read_text())
    }
    assert len(named) > 150
    assert {(page, name) for page, name in named if name not in FAMILIES and name not in other} == set()


def test_the_runbook_names_commands_settings_and_codes_that_are_there() -> None:
    text = MANUAL.read_text()
    commands = set(re.findall(r"`aether ([a-z]+(?: [a-z]+)?)", text))
    assert len(commands) > 6
    for command in commands:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command
    sections = "|".join({name.partition(".")[0] for name in all_keys()})
    settings = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)`", text))
    assert len(settings) > 8
    assert settings - all_keys().keys() - {"log.db"} == set()  # a file
    codes = set(re.findall(r"\bERR_[A-Z_]+", text))
    assert codes - set(re.findall(r"\bERR_[A-Z_]+", (MANUAL.parent / "errors.md").read_text())) == set()
