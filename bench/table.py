"""Results as a table: columns on a console, or Markdown between two markers of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADINGS = (
    "scenario", "rate /s", "echoes", "mean", "CPU us", "mean", "p50 ms", "p90", "p99", "p99.9", "max", "KiB/conn",
)  # fmt: skip
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of texts for each scenario, under `HEADINGS`; an empty text where a scenario has no such figure."""
    return [_row(name, result) for name, result in results["scenarios"].items()]


def _row(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    if "rate" not in result:
        return (name, *[""] * (len(HEADINGS) - 1))
    echoes, cpu = result.get("echoes"), result.get("cpu_us")
    latency = (result.get("latency_us") or {}).get("all", {})
    kib = result.get("kib_per_connection")
    return (
        name,
        f"{result['rate']['best']:,.0f}",
        *(_pair(echoes, ".2f") if echoes else ("", "")),
        *(_pair(cpu, ".1f") if cpu else ("", "")),
        *(f"{latency[at] / 1000:.2f}" if at in latency else "" for at in ("p50", "p90", "p99", "p99.9", "max")),
        f"{kib:.1f}" if kib is not None else "",
    )


def _pair(pair: Mapping[str, float], form: str) -> tuple[str, str]:
    return format(pair["best"], form), format(pair["mean"], form)


def text(results: Mapping[str, Any]) -> str:
    """The table for a console, with what failed and what was checked below it."""
    lines = [HEADINGS, *rows(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    shown = [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:], "", *notes(results)])


def notes(results: Mapping[str, Any]) -> list[str]:
    """Lines below the table: one for each scenario with something to say."""
    said = []
    for name, result in results["scenarios"].items():
        parts = []
        if checks := result.get("checks"):
            parts.append(", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in checks.items()))
        if rate := result.get("paced_rate"):
            parts.append(f"paced at {rate:,.0f}/s")
        if catch_up := result.get("catch_up"):
            parts.append(f"caught up at {catch_up['rate']:,.0f}/s")
        if share := result.get("main_thread_share"):
            parts.append(f"{share:.0%} of the CPU in the main thread")
        if result.get("load_us"):
            parts.append(f"load {result['load_us']:.1f} us each")
        if why := result.get("failed"):
            lines = why.splitlines()  # a server that broke says much; its first and last words tell most
            parts.append("FAILED: " + " … ".join(lines[:1] + lines[1:][-1:]))
        if parts:
            said.append(f"{name}: {'; '.join(parts)}")
    return said


def markdown(results: Mapping[str, Any]) -> str:
    """The table for a page, with the machine it was measured on."""
    machine = results["machine"]
    head = ["| " + " | ".join(line) + " |" for line in (HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)])]
    body = ["| " + " | ".join(row) + " |" for row in rows(results)]
    echo = [result["echo_us"]["best"] for result in results["scenarios"].values() if result.get("echo_us")]
    measured = (
        f"Measured on {machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, {machine['python']}, "
        f"trio {machine['packages'].get('trio', '?')}; a 4 KiB fdatasync took {machine['fsync_us']:.0f} us"
        + (f"; one echo was {min(echo):.1f} us in the best window." if echo else ".")
    )
    return "\n".join([measured, "", *head, *body, "", *[f"* {note}" for note in notes(results)]])


def render(page: Path, results: Mapping[str, Any]) -> None:
    """Put the table between the page's two markers. ValueError when it has none."""
    old = page.read_text()
    begin, end = old.find(BEGIN), old.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{old[: begin + len(BEGIN)]}\n\n{markdown(results)}\n\n{old[end:]}")
