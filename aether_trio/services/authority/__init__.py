"""Authority: grants, by which one acts for another, and requests for them."""

from aether_trio.services.authority.known_grants import KnownGrants
from aether_trio.services.authority.service import AuthorityService
from aether_trio.services.authority.tasks import TaskTransactions

__all__ = ["AuthorityService", "KnownGrants", "TaskTransactions"]
