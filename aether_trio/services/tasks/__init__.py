"""Tasks: durable work that outlives its workers (reference: tasks.md)."""

from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers.creation import Creation
from aether_trio.services.tasks.notifications import Alone, Hints, InCluster
from aether_trio.services.tasks.service import TaskService
from aether_trio.services.tasks.starter import AgentHooks, Starter

__all__ = ["AgentHooks", "Alone", "Creation", "Engine", "Hints", "InCluster", "Starter", "TaskService"]
