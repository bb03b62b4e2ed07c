"""Write the report: one HTML file that needs nothing else, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadtests.plots import Points, line_plot
from loadtests.table import cells
from loadtests.timeline import SERIES

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #e3e7ee; --page: #f6f7fa; --card: #fff;
  --s0: #2563c9; --s1: #d9730d; --s2: #b4234a; --s3: #2c8a57; --good: #1c7c45; --bad: #b4234a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf1; --soft: #9aa4b5; --line: #2d3542; --page: #13171e;
  --card: #1b212b; --s0: #6ea3f5; --s1: #f0a35e; --s2: #ef6f91; --s3: #6cc799; --good: #6cc799; --bad: #ef6f91; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 32px 0 10px; }
p { margin: 4px 0; } .soft, small { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin-top: 18px; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 14px; } .tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
@media (max-width: 480px) { .plots { grid-template-columns: 1fr; } }
figure { margin: 0; padding: 10px 12px; } figcaption { font-weight: 600; margin-bottom: 4px; } svg { width: 100%; height: auto; }
figcaption small { font-weight: 400; } .tick { fill: var(--soft); font-size: 11px; } .grid { stroke: var(--line); }
.mark { stroke: var(--soft); stroke-dasharray: 3 3; stroke-width: 1.4; } .line { fill: none; stroke-width: 1.7; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); } .line.s3 { stroke: var(--s3); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 12.5px; color: var(--soft); }
.key i { display: inline-block; width: 14px; height: 3px; margin: 0 6px 3px 0; }
i.s0 { background: var(--s0); } i.s1 { background: var(--s1); } i.s2 { background: var(--s2); } i.s3 { background: var(--s3); }
.card { padding: 6px 14px; overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
tr:last-child > * { border-bottom: 0; } th { font-weight: 600; color: var(--soft); } td.n, th.n { text-align: right; }
"""
NINES = {
    1.0: "0 %",
    2.0: "50 %",
    10.0: "90 %",
    100.0: "99 %",
    1000.0: "99.9 %",
    10_000.0: "99.99 %",
    100_000.0: "99.999 %",
}


def column(rows: Sequence[dict[str, Any]], name: str) -> Points:
    """(second, value) of one column of the timeline."""
    return [(row["at_s"], row[name]) for row in rows]


def plots(results: dict[str, Any]) -> list[str]:
    """All plots that have something to show."""
    rows = results["timeline"]
    marks = [(mark["at_s"], mark["text"]) for mark in results["marks"]]

    def over_time(title: str, unit: str, names: dict[str, str], *, log_y: bool = False) -> str:
        return line_plot(
            title,
            unit,
            {label: column(rows, name) for label, name in names.items()},
            marks=marks,
            log_y=log_y,
            x_range=(0.0, rows[-1]["at_s"]),
        )

    spectrum = {name: points for name, points in results["spectrum"].items() if points}
    return [
        over_time("Connections", "open", {"open": "connected"}),
        over_time("Connection rate", "acknowledged per second", {"connections": "connects"}),
        over_time("Messages", "per second", {"sent": "sent", "received": "received"}),
        over_time("Message latency", "ms, in each second", {"p50": "p50_ms", "p99": "p99_ms", "max": "max_ms"}, log_y=True),
        line_plot(
            "Latency by percentile", "ms, over the whole run", spectrum, x_unit="percentile", log_x=True, log_y=True,
            x_labels=NINES,
        ),
        over_time("Errors", "per second", {"errors": "errors"}),
        over_time("Memory of the gateway", "MiB resident", {"RSS": "rss_mib"}),
        over_time("CPU", "cores", {"gateway": "gateway_cores", "load generator": "load_cores"}),
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f"<th{'' if n == 0 else ' class=n'}>{escape(text)}</th>" for n, text in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f"<td{'' if n == 0 else ' class=n'}>{escape(cell)}</td>" for n, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    top = f"<tr>{heads}</tr>" if any(head) else ""
    return f'<div class="card"><table>{top}{body}</table></div>' if body else ""


def html(results: dict[str, Any]) -> str:
    """The whole page."""
    parts = cells(results)
    bad = results["failures"]
    verdict = (
        "".join(f'<p class="bad">{escape(text)}</p>' for text in bad) or '<p class="good">Nothing lost, all well.</p>'
    )
    tiles = "".join(
        f'<div class="tile"><small>{escape(name)}</small><b>{escape(value)}</b></div>' for name, value in parts.tiles
    )
    marks = "".join(f"<p><b>{mark['at_s']:.1f} s</b> {escape(mark['text'])}</p>" for mark in results["marks"])
    machine = results.get("machine", {})
    place = ", ".join(
        f"{name} {machine[key]}" for key, name in (("cpu", ""), ("cores", "cores"), ("kernel", "Linux"), ("python", ""), ("commit", "commit")) if machine.get(key)
    )  # fmt: skip
    series = "".join(
        f"<p class=soft>{escape(name)}: {escape(text)}</p>"
        for name, text in SERIES.items()
        if name in results["latency_ms"]
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(parts.title)}</title><style>{STYLE}</style></head><body><main>
<h1>{escape(parts.title)}</h1>
<p class="soft">{escape(results.get("when", ""))} {escape(place)}</p>
<p class="soft"><code>{escape(results.get("command", ""))}</code></p>
{verdict}
<div class="tiles">{tiles}</div>
<h2>Over time</h2>
<div class="plots">{"".join(plots(results))}</div>
<p class="soft">Dashed lines: what happened then. Times of messages count from the moment at which each was due.</p>
{marks}
<h2>Latency</h2>
{_table(parts.latency_head, parts.latency)}
{series}
<h2>Messages and connections</h2>
{_table(("", ""), parts.counts)}
<h2>Errors by code</h2>
{_table(("code", "times", "the first one said"), parts.errors) or "<p class=soft>none</p>"}
<h2>Gateway</h2>
{_table(("", ""), parts.gateway) or "<p class=soft>its process is not known (--pid)</p>"}
</main></body></html>
"""


def write(place: Path, results: dict[str, Any]) -> Path:
    """Write report.html and report.json into `place`; returns the page's path."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    page = place / "report.html"
    page.write_text(html(results))
    return page
