"""Workflows in Python: functions that a crash does not interrupt, and graphs.

    @workflow
    async def report(flow: Flow, topic: str) -> dict:
        plan = await flow.step(make_plan, topic)
        async with flow.nursery() as branches:
            hits = [branches.start(flow.call, "searcher", "search", {"topic": one}) for one in plan]
        return {"found": [one.result for one in hits]}

    async with AgentClient(ADDRESS, **who) as worker:
        await worker.serve_workflows([report])

`WorkflowGraph` builds the document of a graph. docs/workflows.md says how to use them.
"""

from aether_trio.client.workflows.definition import Function, workflow
from aether_trio.client.workflows.errors import Cancelled, Diverged, StepFailed
from aether_trio.client.workflows.flow import Branches, BranchResult, Flow, NextRun, PersonsAnswer, StepRetry
from aether_trio.client.workflows.graphs import GraphExpression, GraphStep, WorkflowGraph, expr

__all__ = [
    "BranchResult", "Branches", "Cancelled", "Diverged", "Flow", "Function", "GraphExpression", "GraphStep", "NextRun",
    "PersonsAnswer", "StepFailed", "StepRetry", "WorkflowGraph", "expr", "workflow",
]  # fmt: skip
