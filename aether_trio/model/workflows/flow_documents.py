"""Reads the `flow:` of a rule or workflow: which stages it has, in gates by key.

flow_control.py says what each stage does. Consecutive stages whose keys have the same text share a
gate, so that most documents have one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from aether_trio.model.workflows.compiling import Compiler, ReadScope
from aether_trio.model.workflows.definition import (
    NO_FLOW_CONTROL,
    Batch,
    Concurrency,
    Debounce,
    FlowControl,
    FlowGate,
    Json,
    OnLimit,
    Pace,
    Value,
)
from aether_trio.model.workflows.flow_control import MAX_GATHERED
from aether_trio.model.workflows.reading import Fields

MAX_CONCURRENCY: Final = 1_000
MAX_PACE: Final = 1_000_000
DAY_MS: Final = 86_400_000
MAX_PERIOD_MS: Final = 366 * DAY_MS
STAGES: Final = ("idempotency", "rate", "debounce", "batch", "singleton", "concurrency", "throttle")
"""In the order in which an item passes them."""
FLOW_KEYS: Final = (*STAGES, "key", "priority")
_ON_LIMIT: Final = tuple(str(one) for one in OnLimit)


def compile_flow(compiler: Compiler, fields: Fields, scope: ReadScope) -> FlowControl:
    """Compile the `flow` of a document's fields; its expressions are within the scope."""
    if not fields.has("flow"):
        return NO_FLOW_CONTROL
    flow = Fields(fields.get("flow"), fields.at("flow"), compiler.findings, FLOW_KEYS, f"{fields.what}, flow")
    reader = _FlowReader(compiler, flow, scope)
    priority = compiler.field_expression(flow, "priority", scope)
    return FlowControl(gates=reader.gates(), priority=priority)


class _FlowReader:
    """Reads the stages of one `flow`."""

    __slots__ = ("compiler", "flow", "scope", "shared_key")

    def __init__(self, compiler: Compiler, flow: Fields, scope: ReadScope) -> None:
        self.compiler = compiler
        self.flow = flow
        self.scope = scope
        self.shared_key = self._key(flow)

    def gates(self) -> tuple[FlowGate, ...]:
        for one, other, why in (
            ("debounce", "batch", "both gather items: take one of them"),
            ("singleton", "concurrency", "a singleton is concurrency with a limit of 1: take one of them"),
        ):
            if self.flow.has(one) and self.flow.has(other):
                self.flow.error(other, f"{self.flow.what} has {one} and {other}; {why}")
        gates: list[FlowGate] = []
        for stage in STAGES:
            if not self.flow.has(stage) or self.flow.get(stage) is False:
                continue
            fields = self._fields(stage)
            key, source = self._key(fields) if fields.has("key") else self.shared_key
            parts: dict[str, Any] = getattr(self, f"_{stage}")(fields, key)
            if gates and gates[-1].key_source == source:
                gates[-1] = dataclasses.replace(gates[-1], **parts)
            else:
                gates.append(FlowGate(key=key, key_source=source, **parts))
        return tuple(gates)

    def _fields(self, stage: str) -> Fields:
        """Return the fields of a stage: `concurrency: 3` and `singleton: true` are short."""
        value: Json = self.flow.get(stage)
        known = {
            "idempotency": ("key", "period"),
            "rate": ("limit", "period", "key"),
            "debounce": ("period", "max_wait", "key"),
            "batch": ("size", "timeout", "key"),
            "singleton": ("key", "on_limit"),
            "concurrency": ("limit", "on_limit", "key"),
            "throttle": ("limit", "period", "key"),
        }[stage]
        if stage == "concurrency" and isinstance(value, int | float) and not isinstance(value, bool):
            value = {"limit": value}
        if stage == "singleton" and value is True:
            value = {}
        return Fields(value, self.flow.at(stage), self.compiler.findings, known, f"{self.flow.what}, {stage}")

    def _key(self, fields: Fields) -> tuple[Value | None, str]:
        value = fields.get("key")
        if value is None or value == "":
            return None, ""
        if not isinstance(value, str):
            fields.error("key", f"{fields.what}: key has to be an expression, such as input.customer")
            return None, ""
        return self.compiler.field_expression(fields, "key", self.scope), value.strip()

    def _idempotency(self, fields: Fields, key: Value | None) -> dict[str, Any]:
        if key is None and fields.values and not fields.has("key"):
            self._missing(fields, "key", "what makes two items the same")
        return {"idempotency_ms": self._period(fields, "period", DAY_MS)}

    def _rate(self, fields: Fields, _: Value | None) -> dict[str, Any]:
        return {"rate": self._pace(fields)}

    def _throttle(self, fields: Fields, _: Value | None) -> dict[str, Any]:
        return {"throttle": self._pace(fields)}

    def _debounce(self, fields: Fields, _: Value | None) -> dict[str, Any]:
        period_ms = self._period(fields, "period")
        max_wait_ms = self._period(fields, "max_wait", 1) if fields.has("max_wait") else 0
        if fields.has("max_wait") and 0 < max_wait_ms < period_ms:
            fields.error("max_wait", f"{fields.what}: max_wait is shorter than period, so no period ever passes")
        return {"debounce": Debounce(period_ms=period_ms, max_wait_ms=max_wait_ms)}

    def _batch(self, fields: Fields, _: Value | None) -> dict[str, Any]:
        size = self._limit(fields, "size", MAX_GATHERED)
        return {"batch": Batch(size=size, timeout_ms=self._period(fields, "timeout"))}

    def _singleton(self, fields: Fields, _: Value | None) -> dict[str, Any]:
        return {"concurrency": Concurrency(limit=1, on_limit=self._on_limit(fields, OnLimit.SKIP))}

    def _concurrency(self, fields: Fields, _: Value | None) -> dict[str, Any]:
        limit = self._limit(fields, "limit", MAX_CONCURRENCY)
        return {"concurrency": Concurrency(limit=limit, on_limit=self._on_limit(fields, OnLimit.QUEUE))}

    def _pace(self, fields: Fields) -> Pace:
        return Pace(limit=self._limit(fields, "limit", MAX_PACE), period_ms=self._period(fields, "period"))

    def _on_limit(self, fields: Fields, default: OnLimit) -> OnLimit:
        return OnLimit(fields.choice("on_limit", _ON_LIMIT, default.value))

    def _limit(self, fields: Fields, key: str, most: int) -> int:
        if not fields.has(key):
            self._missing(fields, key, "how many")
            return 1
        return fields.whole(key, 1, least=1, most=most)

    def _period(self, fields: Fields, key: str, default_ms: int = 0) -> int:
        """Return a duration, which is longer than 0."""
        if not fields.has(key):
            if not default_ms:
                self._missing(fields, key, "for how long, such as 10s")
            return default_ms or 1
        period_ms = self.compiler.duration(fields, key, 1, positive=True)
        if period_ms > MAX_PERIOD_MS:
            fields.error(key, f"{fields.what}: {key} is longer than 366 days")
        return max(period_ms, 1)

    def _missing(self, fields: Fields, key: str, what: str) -> None:
        self.compiler.findings.error(fields.path, f"{fields.what} has no {key}: say {what}")
