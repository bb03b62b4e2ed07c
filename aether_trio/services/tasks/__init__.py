"""Tasks: durable work that outlives its workers (reference: tasks.md)."""

from aether_trio.services.tasks.creation import Creation
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.hints import Alone, Hints, InCluster
from aether_trio.services.tasks.service import TaskService
from aether_trio.services.tasks.starting import Starter

__all__ = ["Alone", "Creation", "Engine", "Hints", "InCluster", "Starter", "TaskService"]
