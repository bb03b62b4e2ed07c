"""A client's work on tasks: the loop that receives them, and the block of each.

    async with AgentClient(ADDRESS, **who) as worker:
        async for task in worker.work():
            async with task:              # left well: COMPLETED; by an exception: FAILED
                await task.progress(0.5, "half of it")

docs/tasks.md says how to use it.
"""

from aether_trio.client.jobs.job import Job, JobEnd, TaskOver
from aether_trio.client.jobs.worker import Jobs, WorkerMethods

__all__ = ["Job", "JobEnd", "Jobs", "TaskOver", "WorkerMethods"]
