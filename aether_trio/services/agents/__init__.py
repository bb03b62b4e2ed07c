"""Agents that orchestrators start when needed: registry, startup tasks, autostart."""

from aether_trio.services.agents.autostart import Autostarter, AutostartQueue
from aether_trio.services.agents.crash_loops import CrashLoops
from aether_trio.services.agents.registry import AgentRegistry
from aether_trio.services.agents.resource_owners import ResourceOwners
from aether_trio.services.agents.service import AgentService
from aether_trio.services.agents.startup import AgentStarter

__all__ = [
    "AgentRegistry",
    "AgentService",
    "AgentStarter",
    "AutostartQueue",
    "Autostarter",
    "CrashLoops",
    "ResourceOwners",
]
