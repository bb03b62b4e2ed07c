"""Starts agents when they are needed: `aether orchestrate`, `aether dev --agents`.

    agents.yaml ──▶ AgentSpec (agents_file.py)
                        │
    gateway ── start ──▶ AgentSupervisor ──▶ LaunchPlan ──▶ process (process_group.py)
            ◀─ failure ─┘                                  └─▶ its lines and its end ──▶ Reporter

The gateway decides when an agent is started, and sees whether it connects. The commands are in the
orchestrator's own file: nothing that a gateway sends becomes a command.
"""

from aether_trio.orchestrator.agents_file import AgentsFileError, AgentSpec, load_agents
from aether_trio.orchestrator.launch_plan import DockerError, GatewayAddresses, check_docker, missing_commands
from aether_trio.orchestrator.reporter import LogReporter, Reporter, TextReporter
from aether_trio.orchestrator.supervisor import AgentSupervisor, OrchestratorLimits

__all__ = [
    "AgentSpec",
    "AgentSupervisor",
    "AgentsFileError",
    "DockerError",
    "GatewayAddresses",
    "LogReporter",
    "OrchestratorLimits",
    "Reporter",
    "TextReporter",
    "check_docker",
    "load_agents",
    "missing_commands",
]
