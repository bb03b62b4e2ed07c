"""The namespaces of the operations, for scripts that block: the same methods with the same arguments and errors.

Each class lists the methods of its async one; a test holds the lists complete. What a method's block yields is blocking too.
"""

from __future__ import annotations

from typing import Generic, Self, TypeVar

from aether_trio.client.blocking.bridge import Blocking, blocking, blocking_block, blocking_stream, streamed
from aether_trio.client.blocking.values import SyncGrantCache, SyncResponse, SyncTunnel, served
from aether_trio.client.operations.access import Access
from aether_trio.client.operations.agents import Registry
from aether_trio.client.operations.audit import Audit
from aether_trio.client.operations.checkpoints import Checkpoints
from aether_trio.client.operations.gateway import Gateway
from aether_trio.client.operations.grants import Grants
from aether_trio.client.operations.kv import Kv
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.progress import Progress
from aether_trio.client.operations.proxy import Proxy
from aether_trio.client.operations.requests import AuthorityRequests
from aether_trio.client.operations.rules import Rules
from aether_trio.client.operations.sessions import Sessions
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.operations.tokens import Tokens
from aether_trio.client.operations.tunnels import Tunnels
from aether_trio.client.operations.workflow import Workflow
from aether_trio.client.operations.workspaces import Workspaces

N = TypeVar("N", bound=Namespace)


class SyncNamespace(Blocking[N], Generic[N]):
    """A family of operations that block."""

    def within(self, timeout_s: float | None) -> Self:
        """The same operations with another limit for an answer, in seconds; None waits for ever."""
        return type(self)(self._bridge, self._target.within(timeout_s))


class SyncAccess(SyncNamespace[Access]):
    """See Access."""

    check = blocking(Access.check)
    check_all = blocking(Access.check_all)
    send_checked = blocking(Access.send_checked)


class SyncAudit(SyncNamespace[Audit]):
    """See Audit."""

    query = blocking(Audit.query)
    submit = blocking(Audit.submit)


class SyncAuthorityRequests(SyncNamespace[AuthorityRequests]):
    """See AuthorityRequests."""

    approve = blocking(AuthorityRequests.approve)
    cancel = blocking(AuthorityRequests.cancel)
    create = blocking(AuthorityRequests.create)
    deny = blocking(AuthorityRequests.deny)
    events = blocking_block(AuthorityRequests.events, streamed)
    get = blocking(AuthorityRequests.get)
    list_pending = blocking(AuthorityRequests.list_pending)


class SyncCheckpoints(SyncNamespace[Checkpoints]):
    """See Checkpoints."""

    delete = blocking(Checkpoints.delete)
    list = blocking(Checkpoints.list)
    load = blocking(Checkpoints.load)
    save = blocking(Checkpoints.save)


class SyncGateway(SyncNamespace[Gateway]):
    """See Gateway."""

    connection = blocking(Gateway.connection)
    connections = blocking(Gateway.connections)
    health = blocking(Gateway.health)
    info = blocking(Gateway.info)
    stats = blocking(Gateway.stats)


class SyncGrants(SyncNamespace[Grants]):
    """See Grants."""

    batch_exchange = blocking(Grants.batch_exchange)
    cached = blocking_block(Grants.cached, SyncGrantCache)
    derive = blocking(Grants.derive)
    derive_for_target = blocking(Grants.derive_for_target)
    exchange = blocking(Grants.exchange)
    get = blocking(Grants.get)
    list_mine = blocking(Grants.list_mine)
    list_on_me = blocking(Grants.list_on_me)
    renew = blocking(Grants.renew)
    resolve = blocking(Grants.resolve)
    revocations = blocking_block(Grants.revocations, streamed)
    revoke = blocking(Grants.revoke)


class SyncKv(SyncNamespace[Kv]):
    """See Kv."""

    compare_and_delete = blocking(Kv.compare_and_delete)
    compare_and_set = blocking(Kv.compare_and_set)
    decrement = blocking(Kv.decrement)
    decrement_if = blocking(Kv.decrement_if)
    delete = blocking(Kv.delete)
    get = blocking(Kv.get)
    increment = blocking(Kv.increment)
    increment_if = blocking(Kv.increment_if)
    items = blocking_stream(Kv.items)
    list = blocking(Kv.list)
    purge_identity = blocking(Kv.purge_identity)
    put = blocking(Kv.put)
    put_if_absent = blocking(Kv.put_if_absent)
    set_add = blocking(Kv.set_add)
    set_size = blocking(Kv.set_size)


class SyncProgress(SyncNamespace[Progress]):
    """See Progress."""

    report = blocking(Progress.report)


class SyncProxy(SyncNamespace[Proxy]):
    """See Proxy."""

    request = blocking(Proxy.request)
    serve = blocking_block(Proxy.serve, served)
    stream = blocking_block(Proxy.stream, SyncResponse)
    tell_head = blocking(Proxy.tell_head)
    tell_piece = blocking(Proxy.tell_piece)


class SyncRegistry(SyncNamespace[Registry]):
    """See Registry."""

    delete = blocking(Registry.delete)
    get = blocking(Registry.get)
    launch = blocking(Registry.launch)
    list = blocking(Registry.list)
    orchestrators = blocking(Registry.orchestrators)
    register = blocking(Registry.register)
    update = blocking(Registry.update)


class SyncRules(SyncNamespace[Rules]):
    """See Rules."""

    add_member = blocking(Rules.add_member)
    assign_role = blocking(Rules.assign_role)
    create_group = blocking(Rules.create_group)
    create_role = blocking(Rules.create_role)
    decisions = blocking(Rules.decisions)
    delete_group = blocking(Rules.delete_group)
    delete_role = blocking(Rules.delete_role)
    explain = blocking(Rules.explain)
    fallback = blocking(Rules.fallback)
    forget_decisions = blocking(Rules.forget_decisions)
    forget_expired = blocking(Rules.forget_expired)
    get = blocking(Rules.get)
    get_group = blocking(Rules.get_group)
    get_role = blocking(Rules.get_role)
    grant = blocking(Rules.grant)
    groups_of = blocking(Rules.groups_of)
    list = blocking(Rules.list)
    list_groups = blocking(Rules.list_groups)
    list_roles = blocking(Rules.list_roles)
    members = blocking(Rules.members)
    remove_member = blocking(Rules.remove_member)
    revoke = blocking(Rules.revoke)
    revoke_matching = blocking(Rules.revoke_matching)
    role_assignments = blocking(Rules.role_assignments)
    roles_of = blocking(Rules.roles_of)
    set_fallback = blocking(Rules.set_fallback)
    unassign_role = blocking(Rules.unassign_role)


class SyncSessions(SyncNamespace[Sessions]):
    """See Sessions."""

    connection_status = blocking(Sessions.connection_status)
    disconnect = blocking(Sessions.disconnect)
    get = blocking(Sessions.get)
    list = blocking(Sessions.list)


class SyncTasks(SyncNamespace[Tasks]):
    """See Tasks."""

    assignments = blocking_block(Tasks.assignments, streamed)
    cancel = blocking(Tasks.cancel)
    claim = blocking(Tasks.claim)
    complete = blocking(Tasks.complete)
    create = blocking(Tasks.create)
    fail = blocking(Tasks.fail)
    follow = blocking_block(Tasks.follow, streamed)
    get = blocking(Tasks.get)
    hibernate = blocking(Tasks.hibernate)
    hibernations = blocking_block(Tasks.hibernations, streamed)
    pause = blocking(Tasks.pause)
    query = blocking(Tasks.query)
    reject = blocking(Tasks.reject)
    resume = blocking(Tasks.resume)
    retry = blocking(Tasks.retry)
    subscribe = blocking(Tasks.subscribe)
    unsubscribe = blocking(Tasks.unsubscribe)
    wait_for = blocking(Tasks.wait_for)


class SyncTokens(SyncNamespace[Tokens]):
    """See Tokens."""

    create = blocking(Tokens.create)
    delete = blocking(Tokens.delete)
    get = blocking(Tokens.get)
    list = blocking(Tokens.list)
    revoke = blocking(Tokens.revoke)


class SyncTunnels(SyncNamespace[Tunnels]):
    """See Tunnels."""

    accept = blocking_block(Tunnels.accept, SyncTunnel)
    incoming = blocking_block(Tunnels.incoming, streamed)
    open = blocking_block(Tunnels.open, SyncTunnel)
    refuse = blocking(Tunnels.refuse)


class SyncWorkflow(SyncNamespace[Workflow]):
    """See Workflow."""

    cancel_execution = blocking(Workflow.cancel_execution)
    cancel_join = blocking(Workflow.cancel_join)
    create_instance = blocking(Workflow.create_instance)
    create_rule = blocking(Workflow.create_rule)
    create_schedule = blocking(Workflow.create_schedule)
    create_state_machine = blocking(Workflow.create_state_machine)
    create_workflow = blocking(Workflow.create_workflow)
    delete_rule = blocking(Workflow.delete_rule)
    delete_schedule = blocking(Workflow.delete_schedule)
    delete_state_machine = blocking(Workflow.delete_state_machine)
    delete_workflow = blocking(Workflow.delete_workflow)
    get_execution = blocking(Workflow.get_execution)
    get_instance = blocking(Workflow.get_instance)
    get_join = blocking(Workflow.get_join)
    get_rule = blocking(Workflow.get_rule)
    get_state_machine = blocking(Workflow.get_state_machine)
    get_workflow = blocking(Workflow.get_workflow)
    list_executions = blocking(Workflow.list_executions)
    list_instances = blocking(Workflow.list_instances)
    list_joins = blocking(Workflow.list_joins)
    list_rules = blocking(Workflow.list_rules)
    list_schedules = blocking(Workflow.list_schedules)
    list_state_machines = blocking(Workflow.list_state_machines)
    list_workflows = blocking(Workflow.list_workflows)
    requests = blocking_block(Workflow.requests, streamed)
    respond = blocking(Workflow.respond)
    send_event = blocking(Workflow.send_event)
    update_rule = blocking(Workflow.update_rule)
    upsert_schedule = blocking(Workflow.upsert_schedule)


class SyncWorkspaces(SyncNamespace[Workspaces]):
    """See Workspaces."""

    create = blocking(Workspaces.create)
    delete = blocking(Workspaces.delete)
    get = blocking(Workspaces.get)
    list = blocking(Workspaces.list)
    message_flow = blocking(Workspaces.message_flow)
    switch = blocking(Workspaces.switch)
    update = blocking(Workspaces.update)
