"""All scenarios by their names on the command line, in the order of a run.

SCENARIOS are those that run when none is named; FAMILIES are others, which run by the family's name
or by their own.
"""

from bench.scenarios.access import COMPARED
from bench.scenarios.access_decide import Decide
from bench.scenarios.access_rate import RATES
from bench.scenarios.access_revoke import Revoke
from bench.scenarios.access_verify import Verify
from bench.scenarios.backup import Backup
from bench.scenarios.base import Scenario
from bench.scenarios.cluster import CLUSTER
from bench.scenarios.connections import ConnectStorm, Idle
from bench.scenarios.enqueue import Enqueue
from bench.scenarios.fanout import FANOUTS
from bench.scenarios.growth import GROWTH
from bench.scenarios.kv import PutGet
from bench.scenarios.paced import Paced
from bench.scenarios.quiet import QUIET
from bench.scenarios.raw_echo import RawEcho
from bench.scenarios.routed import ROUTED
from bench.scenarios.soak import Soak
from bench.scenarios.tasks import CYCLES
from bench.scenarios.tasks_children import CHILDREN
from bench.scenarios.tasks_queued import QUEUED
from bench.scenarios.workflows import WORKFLOWS
from bench.scenarios.workflows_events import EVENTS
from bench.scenarios.workflows_waiting import WAITING

SCENARIOS: dict[str, type[Scenario]] = {
    scenario.name: scenario for scenario in (RawEcho, ConnectStorm, Idle, *ROUTED, Paced, *FANOUTS, PutGet, Enqueue)
}

FAMILIES: dict[str, dict[str, type[Scenario]]] = {
    "quiet": {scenario.name: scenario for scenario in QUIET},
    "cluster": {scenario.name: scenario for scenario in CLUSTER},
    "tasks": {scenario.name: scenario for scenario in (*CYCLES, *QUEUED, *CHILDREN)},
    "workflows": {scenario.name: scenario for scenario in (*WORKFLOWS, *EVENTS, *WAITING)},
    "growth": {scenario.name: scenario for scenario in GROWTH},
    "access": {scenario.name: scenario for scenario in (*COMPARED, Decide, Revoke, *RATES, Verify)},
    "soak": {Soak.name: Soak},
    "backup": {Backup.name: Backup},
}

__all__ = ["FAMILIES", "SCENARIOS", "Scenario"]
