"""Agents that can be started when they are needed: which there are, who starts them, and when."""

from aether_trio.services.agents.autostart import Autostarter, AutostartQueue
from aether_trio.services.agents.registry import AgentStore
from aether_trio.services.agents.service import AgentService
from aether_trio.services.agents.startup import Starts

__all__ = ["AgentService", "AgentStore", "AutostartQueue", "Autostarter", "Starts"]
