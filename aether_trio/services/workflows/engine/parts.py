"""The parts of the embedded workflow engine, but its connection.

The hook is handed to the task engine when that is made; the operations are made with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aether_trio.config.settings import WorkflowSettings
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.ids import IdFactory
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions import action_dead_letters
from aether_trio.services.workflows.actions.action_dead_letters import ACTION_FAILED
from aether_trio.services.workflows.actions.performer import Actions
from aether_trio.services.workflows.engine.hook import WorkflowHook
from aether_trio.services.workflows.executions import families
from aether_trio.services.workflows.executions.advancing import Executions, HistoryLimit
from aether_trio.services.workflows.executions.functions import Functions
from aether_trio.services.workflows.executions.waits import Waits
from aether_trio.services.workflows.flow import admission as flow
from aether_trio.services.workflows.flow import flow_rows, flow_stops
from aether_trio.services.workflows.flow.admission import Admission, RunBegins
from aether_trio.services.workflows.flow.flow_stops import SCHEDULE, FlowStops
from aether_trio.services.workflows.joins.arrivals import JOIN, Joins
from aether_trio.services.workflows.joins.join_operations import JoinOperations
from aether_trio.services.workflows.machines.machine_operations import MachineOperations, put_machine
from aether_trio.services.workflows.machines.moves import MACHINE, Machines
from aether_trio.services.workflows.operations.diagram_operations import DiagramOperations
from aether_trio.services.workflows.operations.function_operations import FunctionOperations
from aether_trio.services.workflows.operations.past_operations import PastOperations
from aether_trio.services.workflows.operations.timeline import TimelineOperations
from aether_trio.services.workflows.operations.workflow_operations import WorkflowOperations
from aether_trio.services.workflows.requests.applying import Appliers, ApplyOperations
from aether_trio.services.workflows.requests.asked import WorkspaceAccess
from aether_trio.services.workflows.rules import unfinished_events
from aether_trio.services.workflows.rules.event_handler import EventHandler
from aether_trio.services.workflows.rules.foretelling import ForetellOperations
from aether_trio.services.workflows.rules.reactions import EventReactions
from aether_trio.services.workflows.rules.redriving import RedriveOperations
from aether_trio.services.workflows.rules.rule_operations import RULE, RuleOperations, put_rule
from aether_trio.services.workflows.rules.rule_runs import RuleRuns
from aether_trio.services.workflows.schedules.firing import Schedules
from aether_trio.services.workflows.schedules.schedule_operations import ScheduleOperations, put_schedule
from aether_trio.services.workflows.schedules.schedule_starts import ScheduleStarter
from aether_trio.services.workflows.stored import join_rows, machine_rows, timers
from aether_trio.services.workflows.stored.definitions import Definitions
from aether_trio.services.workflows.stored.owners import owner_may, owner_may_read_key
from aether_trio.services.workflows.stored.sources import WantedEvents
from aether_trio.services.workflows.stored.stored_graphs import (
    compile_stored,
    compile_stored_terms,
    compiled_for_storage,
    schema_problem,
)
from aether_trio.services.workflows.webhooks.accepting import (
    WEBHOOK,
    SenderThrottle,
    WebhookOperations,
    Webhooks,
    put_webhook,
)
from aether_trio.services.workflows.webhooks.webhook_secrets import WebhookSecrets
from aether_trio.storage.base import Program


class WorkflowEngine:
    """Makes the parts; `payload_bytes(workspace)` is the largest payload of a task."""

    def __init__(
        self,
        authorizer: RuleAuthorizer,
        payload_bytes: Callable[[str], int],
        settings: WorkflowSettings,
        secrets: WebhookSecrets,
        wanted: WantedEvents,
        *,
        strict: bool,
    ) -> None:
        self._secrets = secrets
        self.wanted = wanted
        self._owner_may = owner_may(authorizer)
        self._strict = strict
        self._access = WorkspaceAccess(authorizer)
        self.actions = Actions(owner_may(authorizer), payload_bytes, strict=strict)
        limit, waits = HistoryLimit(settings.history_entries, settings.history_bytes), Waits()
        definitions = Definitions(compile_stored, compile_stored_terms)
        self.functions = Functions(definitions, self.actions, schema_problem, limit, waits)
        self.admission = Admission(settings.max_concurrent_executions)
        self.executions = Executions(
            definitions,
            self.actions,
            schema_problem,
            self.functions,
            limit,
            settings.max_descendants,
            self.admission,
            waits,
        )
        self.schedules = Schedules(default_zone=settings.timezone)
        self.machines = Machines(self.actions)
        self.joins = Joins(self.actions, strict=strict)
        self.rule_runs = RuleRuns(self.actions, self.joins, self.admission)
        self.reactions = EventReactions(
            self.actions, self.executions, self.machines, self.rule_runs, owner_may_read_key(authorizer)
        )
        self._starter = ScheduleStarter(self.schedules, self.actions, self.executions)
        self.hook = WorkflowHook(
            self.executions,
            self.functions,
            self._starter,
            self.reactions,
            self.rule_runs,
            {
                families.TIMER: self.executions.put_off_due,
                unfinished_events.TIMER: partial(unfinished_events.go_on, self.reactions),
                machine_rows.TIMER: self.machines.time_passed,
                join_rows.TIMER: self.joins.time_passed,
                join_rows.ACTION_TIMER: self.joins.action_due,
                flow.TIMER: self._flow_due,
                flow.BEGIN_TIMER: self._flow_begin,
                flow_stops.TIMER: FlowStops(
                    {
                        flow_rows.WORKFLOW: self.executions.stop,
                        SCHEDULE: self.executions.stop,
                        flow_rows.RULE: self.rule_runs.stop,
                    }
                ).time_passed,
            },
            {
                ACTION_FAILED: partial(
                    action_dead_letters.retry, {MACHINE: self.machines.act_again, JOIN: self.joins.act_again}
                )
            },
            self.wanted,
        )

    def _flow_due(self, tx: Transaction, place: str) -> Program[None]:
        """Let the moment of a gate or pool of flow control come."""
        kind, effects = yield from self.admission.time_passed(tx, place)
        runs = self.rule_runs if kind == flow_rows.RULE else self.executions
        yield from runs.perform_flow(tx, effects)

    def _flow_begin(self, tx: Transaction, key: str) -> Program[None]:
        """Begin a run that was put off, as one transaction had begun many."""
        yield from timers.set_timer(flow.BEGIN_TIMER, key, 0)
        kind, _, run_id = key.partition(" ")
        runs = self.rule_runs if kind == flow_rows.RULE else self.executions
        yield from runs.perform_flow(tx, [RunBegins(run_id)])

    def events(self, engine: Engine) -> EventHandler:
        """Make what handles events, with the task engine that has the hook."""
        return EventHandler(engine, self.reactions, self._starter)

    def webhooks(self, engine: Engine, throttle: SenderThrottle) -> Webhooks:
        """Make what receives the messages of webhooks."""
        return Webhooks(engine, self._owner_may, self._secrets, throttle)

    def operations(self, engine: Engine, ids: IdFactory, changes: AccessChanges, log: TopicLog) -> WorkflowOperations:
        """Make what answers operations, with the task engine that has the hook."""
        appliers = Appliers(
            {
                RULE: put_rule,
                SCHEDULE: partial(put_schedule, self.schedules),
                MACHINE: partial(put_machine, self.machines),
                WEBHOOK: partial(put_webhook, self._secrets),
            }
        )
        machines = MachineOperations(engine, self.machines, self._access, ids)
        return WorkflowOperations(
            engine,
            self.executions,
            self._access,
            ids,
            compiled_for_storage,
            changes.spread,
            ApplyOperations(engine, self._access, appliers),
            ForetellOperations(appliers, self._access, log),
            TimelineOperations(engine, self._access, log),
            ScheduleOperations(engine, self.schedules, self._access, ids),
            RuleOperations(engine, self._access),
            FunctionOperations(engine, self.functions, self.executions, self._access),
            machines,
            DiagramOperations(engine, machines, self._access),
            JoinOperations(engine, self.joins, self._access),
            RedriveOperations(engine, self._access),
            WebhookOperations(engine, self._access, self._secrets),
            PastOperations(engine, self.executions, self._access, ids),
            strict=self._strict,
        )
