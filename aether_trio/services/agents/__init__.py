"""Agents that can be started when they are needed: which there are, and who starts them."""

from aether_trio.services.agents.roster import Roster
from aether_trio.services.agents.service import AgentService
from aether_trio.services.agents.store import AgentStore

__all__ = ["AgentService", "AgentStore", "Roster"]
