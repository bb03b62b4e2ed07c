"""Fuzz the documents of workflows: YAML and JSON files, data of operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aether_trio.model.workflows.documents import KINDS
from aether_trio.model.workflows.reading import MAX_PROBLEMS, DefinitionErrors
from aether_trio.services.workflows.documents.reader import identity_of, read_file, read_json
from fuzz.feeding import choices

_FILES: Final = ("a.yaml", "a.json")
_SEEDS: Final = (
    """\
name: flow
inputs: {topic: string, most: 'integer?'}
trigger: {event: asked, condition: input.topic != ""}
steps:
  - id: search
    for_each: split(trigger.topic, " ")
    action: {agent: searcher, arguments: {word: "{{ .item }}", most: {$expr: trigger.most}}}
    retry: {max_attempts: 3, initial: 2s}
    on_error: [{error: "T*", result: []}, {run: sorry}]
  - {id: sorry, fail: "{{ .error.message }}"}
  - {id: ask, depends_on: [search], ask: {question: good?, choices: [a, b], form: {n: integer}}, timeout: 2d}
  - {id: wait, depends_on: [ask], wait: {event: paid, key: input.id, equals: trigger.topic}, when: steps.ask.result.approved}
outputs: {n: {$expr: len(steps.search.result)}}
""",
    """\
rule_name: r
source_event: e
trigger_condition: input.kind matches "^a+$"
destination_template: |
  type: join
  join: {name: j, correlation_key: input.job, expected_count: 3, on_complete: {agent: x}}
---
id: s
schedule_type: cron
schedule_expr: TZ=Europe/Berlin 30 2 * * MON-FRI
action: {type: emit_event, event_name: e, payload: &p [1, 2], metadata: {a: b}}
""",
    """\
name: m
initial_state: a
bus: {event: e, key: input.id, creates: true}
states:
  a: {on: {e: [{to: b, when: data.n > 1, assign: {n: {$expr: data.n + 1}}}, a]}, timeout: 1h, timeout_action: b}
  b: {terminal: true}
""",
)
_JSON: Final = (
    '{"RuleName": "r", "SourceEvent": "e", "DestinationTemplate": "agent: {{ .input.x }}", "Active": true}',
    '{"ID": "a", "Version": 2, "Definition": "{\\"steps\\": [{\\"id\\": \\"a\\", \\"output\\": 1}]}"}',
    '{"id": "m", "definition": {"initial_state": "a", "states": {"a": {"on": {"x": "a"}}}}}',
    '{"id": "s", "schedule_type": "interval", "schedule_expr": "90s", "workflow_id": "w", "jitter": "5s"}',
)


def check(data: bytes) -> None:
    """Check an input: the form and the kind in two bytes, and the document."""
    (form, kind), document = choices(data, 2)
    if form % 3 < len(_FILES):
        found = read_file(_FILES[form % 3], document.decode("utf-8", "replace"))
        assert found.definitions or found.errors
        assert len(found.places) == len(found.definitions) == len({identity_of(one) for one in found.definitions})
        lines = (*found.errors, *found.warnings)
    else:
        try:
            definition, ignored = read_json(KINDS[kind % len(KINDS)], document)
        except DefinitionErrors as refused:
            lines = refused.problems
            assert 0 < len(lines) <= MAX_PROBLEMS + 1
        else:
            lines = tuple(ignored)
            assert len(definition.digest) == 64
    assert all(line.isprintable() and len(line) < 2_000 for line in lines)


def seeds() -> Iterator[bytes]:
    """Documents of every kind, in every form."""
    for text in _SEEDS:
        yield b"\0\0" + text.encode()
    for text in _JSON:
        yield b"\1\0" + text.encode()
        for kind in range(len(KINDS)):
            yield bytes((2, kind)) + text.encode()
