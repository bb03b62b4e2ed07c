"""The gateway's task service: durable tasks that outlive their workers (tasks.md)."""

from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.nodes import ClusterNodes, SingleNode, TaskNodes
from aether_trio.services.tasks.service import TaskService
from aether_trio.services.tasks.starter import AgentHooks, Starter

__all__ = ["AgentHooks", "ClusterNodes", "Engine", "SingleNode", "Starter", "TaskNodes", "TaskService"]
