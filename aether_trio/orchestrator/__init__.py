"""Starting agents when somebody needs them: `aether orchestrate`, and `aether dev --agents`.

    agents.yaml ──▶ AgentSpec (agents_file.py)
                        │
    gateway ── start ──▶ Orchestrator ──▶ Launch: command and environment (launches.py) ──▶ Child: a process (child.py)
            ◀─ failure ─┘                                                                     └─▶ its lines, its end ──▶ Reporter

The gateway decides that an agent is to be started, and whether it has come; the orchestrator starts a process and says when it ends.
What is run is in the orchestrator's own file: nothing that a gateway sends becomes a command.
"""

from aether_trio.orchestrator.agents_file import AgentsFileError, AgentSpec, load_agents
from aether_trio.orchestrator.launches import DockerError, Surroundings, check_docker, missing_commands
from aether_trio.orchestrator.orchestrator import Orchestrator, OrchestratorLimits
from aether_trio.orchestrator.reporter import Reporter, TextReporter

__all__ = [
    "AgentSpec",
    "AgentsFileError",
    "DockerError",
    "Orchestrator",
    "OrchestratorLimits",
    "Reporter",
    "Surroundings",
    "TextReporter",
    "check_docker",
    "load_agents",
    "missing_commands",
]
