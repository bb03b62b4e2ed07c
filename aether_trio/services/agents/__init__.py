"""Agents that can be started when they are needed: which there are, who starts them, and when."""

from aether_trio.services.agents.service import AgentService
from aether_trio.services.agents.starts import Starts
from aether_trio.services.agents.store import AgentStore
from aether_trio.services.agents.waker import Waker

__all__ = ["AgentService", "AgentStore", "Starts", "Waker"]
