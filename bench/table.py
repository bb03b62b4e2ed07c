"""Show results as tables: on a console, or between two markers of a page.

With several transports a small table comes first that has them side by side, one figure each;
clusters have one more behind.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import name_of, split_name

HEADINGS = (
    "scenario", "transport", "rate /s", "echoes", "mean", "CPU us", "mean", "p50 ms", "p90", "p99", "p99.9", "max", "KiB/conn",
)  # fmt: skip
CLUSTER_HEADINGS = (
    "cluster", "echoes", "gateways", "database", "groups /s", "rows a group", "NOTIFY /s", "wakes /s", "reads /s", "rows a read",
    "pushed /s",
)  # fmt: skip
GROWTH_HEADINGS = ("growth", "with", "fewest", "most", "echoes", "then", "ratio", "")
GOAL_HEADINGS = ("goal of", "figure", "reached", "goal", "")
SOAK_HEADINGS = ("soak", "mean", "least", "most", "an hour", "+-", "")
PAUSES_SHOWN = 20
PART_HEADINGS = ("part", "share", "echoes", "CPU us")
PARTS_SHOWN = 8
CALLS_SHOWN = 6
GROWTH_LIMIT = 1.2
"""Costs that grow by more than this factor are marked."""
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of texts for each scenario, under `HEADINGS`, "" for figures it lacks."""
    return [_row(name, result) for name, result in results["scenarios"].items()]


def _row(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    transport, scenario = split_name(name)
    if "rate" not in result:
        return (scenario, transport, *[""] * (len(HEADINGS) - 2))
    echoes, cpu = result.get("echoes"), result.get("cpu_us")
    latency = (result.get("latency_us") or {}).get("all", {})
    kib = result.get("kib_per_connection")
    return (
        scenario,
        transport,
        f"{result['rate']['best']:,.0f}",
        *(_pair(echoes, ".2f") if echoes else ("", "")),
        *(_pair(cpu, ".1f") if cpu else ("", "")),
        *(f"{latency[at] / 1000:.2f}" if at in latency else "" for at in ("p50", "p90", "p99", "p99.9", "max")),
        f"{kib:.1f}" if kib is not None else "",
    )


def _pair(pair: Mapping[str, float], form: str) -> tuple[str, str]:
    return format(pair["best"], form), format(pair["mean"], form)


def side_by_side(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headings and rows of scenarios on several transports, in echoes or KiB."""
    figures: dict[str, dict[str, str]] = {}
    for name, result in results["scenarios"].items():
        transport, scenario = split_name(name)
        figures.setdefault(scenario, {})[transport] = _figure(result)
    several = {scenario: row for scenario, row in figures.items() if len(row) > 1}
    transports = dict.fromkeys(transport for row in several.values() for transport in row)
    body = [(scenario, *(row.get(transport, "") for transport in transports)) for scenario, row in several.items()]
    return [("echoes", *transports), *body] if body else []


def _figure(result: Mapping[str, Any]) -> str:
    kib, echoes = result.get("kib_per_connection"), result.get("echoes")
    if kib is not None:
        return f"{kib:.1f} KiB"
    return f"{echoes['best']:.2f}" if echoes else "failed" if result.get("failed") else ""


def of_clusters(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headings and rows of cluster scenarios: cost by part, and rate."""
    body = []
    for name, result in results["scenarios"].items():
        if (done := result.get("cluster")) and (echoes := result.get("echoes")):
            database = echoes["best"] * done["database_share"]
            body.append(
                (
                    name,
                    f"{echoes['best']:.2f}",
                    f"{echoes['best'] - database:.2f}",
                    f"{database:.2f}",
                    f"{done['groups_per_s']:,.0f}",
                    f"{done['rows_per_group']:,.1f}",
                    f"{done['notifies_per_s']:,.0f}",
                    f"{done['wakes_per_s']:,.0f}",
                    f"{done['reads_per_s']:,.0f}",
                    f"{done['rows_per_read']:,.1f}",
                    f"{done['pushed_per_s']:,.0f}",
                )
            )
    return [CLUSTER_HEADINGS, *body] if body else []


def of_growth(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headings and rows of growth: each size's cost beside that of the smallest one."""
    fewest: dict[tuple[str, str, str], tuple[int, float]] = {}
    body = []
    for name, result in results["scenarios"].items():
        if not (growth := result.get("growth")) or not (echoes := result.get("echoes")):
            continue
        transport, _ = split_name(name)
        size, cost = growth["size"], echoes["best"]
        least, least_cost = fewest.setdefault((transport, growth["by"], growth["figure"]), (size, cost))
        if size == least:
            continue
        ratio = cost / least_cost if least_cost else 0.0
        body.append(
            (
                name_of(transport, growth["figure"]),
                growth["by"],
                f"{least:,}",
                f"{size:,}",
                f"{least_cost:.2f}",
                f"{cost:.2f}",
                f"{ratio:.2f}",
                "GROWS" if ratio > GROWTH_LIMIT else "",
            )
        )
    return [GROWTH_HEADINGS, *body] if body else []


def of_goals(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headings and rows of figures with a goal, and of those beside them."""
    body = []
    for name, result in results["scenarios"].items():
        for one in result.get("goals", ()):
            unit = f" {one['unit']}" if one["unit"] else ""
            sign = ">=" if one["at_least"] else "<="
            goal = "" if one["goal"] is None else f"{sign} {one['goal']:,g}{unit}"
            reached = f"{one['reached']:,.0f}" if abs(one["reached"]) >= 1000 else f"{one['reached']:.3g}"
            body.append((name, one["figure"], f"{reached}{unit}", goal, "" if one["kept"] else "MISSED"))
    return [GOAL_HEADINGS, *body] if body else []


def of_soaks(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headings and rows of soaks: each figure's trend, with its standard error."""
    body = [
        (
            f"{name}: {figure}",
            *(f"{found[key]:,.2f}" for key in ("mean", "least", "most")),
            f"{found['per_hour']:+,.2f}",
            f"{found['error']:,.2f}",
            "RISES" if found["rises"] else "level",
        )
        for name, result in results["scenarios"].items()
        if (soak := result.get("soak"))
        for figure, found in soak["trends"].items()
    ]
    return [SOAK_HEADINGS, *body] if body else []


def pauses(soak: Mapping[str, Any]) -> list[str]:
    """A soak's longest pauses as texts, the longest first."""
    count = soak["pauses"]
    shown = [
        f"{one['ms']:,.0f} ms in second {one['from_s']:,.0f} to {one['until_s']:,.0f} ({one['of']}; echo {one['echo_ms']:,.0f} ms, waited for a CPU {one['waited_ms']:,.0f} ms)"
        for one in soak["longest_pauses"][:PAUSES_SHOWN]
    ]
    return [f"{count['gateway']} pauses over 100 ms of the gateway, {count['machine']} of the machine", *shown]


def of_parts(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headings and rows of explained costs: a scenario's largest parts, and the rest."""
    body = []
    for name, result in results["scenarios"].items():
        parts = (result.get("explained") or {}).get("parts")
        if not parts:
            continue
        shown = dict(list(parts.items())[:PARTS_SHOWN])
        if (rest := sum(list(parts.values())[PARTS_SHOWN:])) > 0:
            shown["the rest"] = rest
        echoes, cpu = ((result.get(figure) or {}).get("best") for figure in ("echoes", "cpu_us"))
        gateways = 1 - (result.get("cluster") or {}).get("database_share", 0.0)
        body += [
            (
                f"{name}: {part}",
                f"{share:.0%}",
                f"{share * gateways * echoes:.2f}" if echoes is not None else "",
                f"{share * gateways * cpu:.1f}" if cpu is not None else "",
            )
            for part, share in shown.items()
        ]
    return [PART_HEADINGS, *body] if body else []


def parts_in_line(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The same in one row for each scenario, for a page."""
    rows: dict[str, list[str]] = {}
    for label, share, *_ in of_parts(results)[1:]:
        name, _, part = label.partition(": ")
        rows.setdefault(name, []).append(f"{part.replace(':', ',')} {share}")
    body = [(name, "; ".join(parts)) for name, parts in rows.items()]
    return [("scenario", "shares of the gateway's CPU"), *body] if body else []


def text(results: Mapping[str, Any]) -> str:
    """The tables for a console, with failures and checks below."""
    shown = _columns([HEADINGS, *rows(results)], left=2)
    beside = side_by_side(results)
    made = (
        beside,
        of_clusters(results),
        of_growth(results),
        of_goals(results),
        of_soaks(results),
        of_parts(results),
    )
    more = [table for table in made if table]
    return "\n".join([*shown, "", *(line for table in more for line in (*_columns(table), "")), *notes(results)])


def _columns(lines: Sequence[tuple[str, ...]], left: int = 1) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return [shown[0], "-" * len(shown[0]), *shown[1:]]


def notes(results: Mapping[str, Any]) -> list[str]:
    """Lines below the table for scenarios with remarks."""
    said = []
    for name, result in results["scenarios"].items():
        parts = []
        if checks := result.get("checks"):
            parts.append(", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in checks.items()))
        if rate := result.get("paced_rate"):
            parts.append(f"paced at {rate:,.0f}/s")
        if catch_up := result.get("catch_up"):
            parts.append(f"caught up at {catch_up['rate']:,.0f}/s")
        if (cost := result.get("children_cost")) and cost["cpu"]:
            parts.append(f"children take {cost['time']:.2f} times the time and {cost['cpu']:.2f} times the CPU")
        if acks := result.get("ack_frames"):
            parts.append(f"acknowledged in {acks:,} frames")
        if share := result.get("main_thread_share"):
            parts.append(f"{share:.0%} of the CPU in the main thread")
        if soak := result.get("soak"):
            parts += pauses(soak)
        if result.get("load_us"):
            parts.append(f"load {result['load_us']:.1f} us each")
        if (machine := result.get("machine_us")) is not None:
            kernel = result.get("kernel_us")
            of_kernel = f" ({kernel:.1f} of them the kernel's threads)" if kernel is not None else ""
            parts.append(f"machine {machine:.1f} us each{of_kernel}")
        if calls := (result.get("explained") or {}).get("calls"):
            named = ", ".join(f"{call} {number:.2f}" for call, number in list(calls.items())[:CALLS_SHOWN])
            parts.append(f"{sum(calls.values()):.2f} system calls each: {named}")
        if unexplained := (result.get("explained") or {}).get("failed"):
            parts.append(f"not explained: {unexplained}")
        if why := result.get("failed"):
            # A server that broke says much; its first and last words tell most.
            lines = why.splitlines()
            parts.append("FAILED: " + " … ".join(lines[:1] + lines[1:][-1:]))
        if parts:
            said.append(f"{name}: {'; '.join(parts)}")
    return said


def markdown(results: Mapping[str, Any]) -> str:
    """The table for a page, with the machine of the run."""
    machine = results["machine"]
    beside = side_by_side(results)
    echo = [result["echo_us"]["best"] for result in results["scenarios"].values() if result.get("echo_us")]
    measured = (
        f"Measured on {machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, {machine['python']}, "
        f"trio {machine['packages'].get('trio', '?')}; a 4 KiB fdatasync took {machine['fsync_us']:.0f} us"
        + (f"; one echo was {min(echo):.1f} us in the best window." if echo else ".")
    )
    tables = [*([*_markdown_rows(beside), ""] if beside else ()), *_markdown_rows([HEADINGS, *rows(results)], left=2)]
    made = of_clusters(results), of_growth(results), of_goals(results), of_soaks(results)
    for more in filter(None, made):
        tables += ["", *_markdown_rows(more, left=2 if more[0] in (GROWTH_HEADINGS, GOAL_HEADINGS) else 1)]
    if parts := parts_in_line(results):
        tables += ["", *_markdown_rows(parts, left=2)]
    return "\n".join([_wrap(measured), "", *tables, "", *[_wrap(f"* {note}") for note in notes(results)]])


def _wrap(text: str) -> str:
    """Break a paragraph or an item of a list at the pages' 100 columns."""
    indent = "  " if text.startswith("* ") else ""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _markdown_rows(lines: Sequence[tuple[str, ...]], left: int = 1) -> list[str]:
    rule = ("---",) * left + ("---:",) * (len(lines[0]) - left)
    return ["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])]


def render(page: Path, results: Mapping[str, Any]) -> None:
    """Put the table between the page's two markers; raises ValueError."""
    old = page.read_text()
    begin, end = old.find(BEGIN), old.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{old[: begin + len(BEGIN)]}\n\n{markdown(results)}\n\n{old[end:]}")
