"""Working on tasks: the loop that takes them, and the block that one of them is.

    async with AgentClient(ADDRESS, workspace="default", implementation="resizer", specifier="1") as worker:
        async for task in worker.work():
            async with task:                      # left well: COMPLETED; left by an exception: FAILED with its text
                await task.progress(0.5, "half of it")

docs/tasks.md is how to use it. `Job` says what may happen to a block. The parts: intake.py (what
was assigned and is not begun), held.py (the block), job.py (what may be done in it), bench.py (what
a client holds for all of them), worker.py (what it offers), sync.py (the same for threads).
"""

from aether_trio.client.jobs.job import Job
from aether_trio.client.jobs.running_job import JobEnd, TaskOver
from aether_trio.client.jobs.worker import Jobs, Works

__all__ = ["Job", "JobEnd", "Jobs", "TaskOver", "Works"]
