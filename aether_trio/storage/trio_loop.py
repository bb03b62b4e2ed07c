"""trio-asyncio, imported in this one place: importing it changes asyncio for the whole process.

Outside of trio, in any thread, `asyncio.run` would then get a loop of theirs that runs on trio in a greenlet, where
`trio.from_thread` does not work. They keep what asyncio had as a policy for each thread that has set one; here it becomes that of
all threads which have not. Their names for it are private, so the test of this module is what tells us when they change.
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # They subclass what asyncio deprecates from Python 3.12 on; whoever makes errors of warnings could not import us.
    warnings.simplefilter("ignore", DeprecationWarning)
    from trio_asyncio import _loop, aio_as_trio, open_loop

_theirs: Any = _loop
_theirs._FakedPolicy.policy = _theirs._original_policy

__all__ = ["aio_as_trio", "open_loop"]
