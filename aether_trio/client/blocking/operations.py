"""The client's operations, blocking; scripts/generate_blocking.py makes the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Self, TypeVar

from aether_trio.client.blocking.bridge import (
    Blocking,
    BlockingAttribute,
    BlockingStream,
    blocking,
    blocking_block,
    blocking_stream,
    blocking_value,
    called_at_once,
    called_in_loop,
    streamed_as,
)
from aether_trio.client.client import Client
from aether_trio.client.connection.outgoing_messages import Publication, SendOutcome
from aether_trio.client.connection.reconnect import State
from aether_trio.client.errors import AetherError
from aether_trio.client.jobs.job import Job, JobEnd
from aether_trio.client.operations.access_checks import Access
from aether_trio.client.operations.access_rules import Rules
from aether_trio.client.operations.agents import Registry
from aether_trio.client.operations.audit import Audit
from aether_trio.client.operations.checkpoints import Checkpoints
from aether_trio.client.operations.gateway import GatewayQueries
from aether_trio.client.operations.grant_cache import GrantCache
from aether_trio.client.operations.grants import Grants
from aether_trio.client.operations.kv import Kv
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.progress import Progress, ProgressUpdate
from aether_trio.client.operations.proxy import Proxy, StreamedResponse
from aether_trio.client.operations.proxy_service import ProxiedRequest
from aether_trio.client.operations.requests import AuthorityRequests
from aether_trio.client.operations.sessions import Sessions
from aether_trio.client.operations.task_values import Assignment, Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.operations.tokens import Tokens
from aether_trio.client.operations.topics import Topics
from aether_trio.client.operations.tunnels import Tunnel, Tunnels
from aether_trio.client.operations.workflow import Workflow
from aether_trio.client.operations.workspaces import Workspaces
from aether_trio.client.principals import OrchestratorClient, UserClient
from aether_trio.client.senders import ToEveryone, ToParticipants, ToUsersEverywhere, ToWork, WithTelemetry
from aether_trio.wire.pb import aether_pb2 as pb

C = TypeVar("C", bound=Client)
N = TypeVar("N", bound=Namespace)


class SyncGrantCache(Blocking[GrantCache]):
    """Caches the gateway's answers about what grants allow; `Grants.cached` makes one."""

    forget = called_in_loop(GrantCache.forget)
    resolve = blocking(GrantCache.resolve)


class SyncProxiedRequest(Blocking[ProxiedRequest]):
    """An HTTP request to this service, to be answered at once or in pieces."""

    fail = blocking(ProxiedRequest.fail)
    finish = blocking(ProxiedRequest.finish)
    respond = blocking(ProxiedRequest.respond)
    send = blocking(ProxiedRequest.send)
    start = blocking(ProxiedRequest.start)

    @property
    def request(self) -> ProxiedRequest:
        """The async form of the request: method, path, headers and body."""
        return self._target


class SyncPublication(Blocking[Publication]):
    """A published message; `error` is its refusal, None if committed or not settled."""

    committed = blocking(SendOutcome.committed)

    @property
    def error(self) -> AetherError | None:
        """Why the message was refused; None if it was committed, or is not settled yet."""
        return self._target.error

    @property
    def settled(self) -> bool:
        """Whether the message is known to be committed, refused or in doubt."""
        return self._target.settled


class SyncResponse(Blocking[StreamedResponse]):
    """An HTTP response whose body is still coming. Iterate over its pieces, once."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the HTTP response."""
        return self._target.headers

    @property
    def status(self) -> int:
        """The HTTP status of the response."""
        return self._target.status

    def __iter__(self) -> Iterator[bytes]:
        return BlockingStream(self._bridge, self._target)


class SyncTunnel(Blocking[Tunnel]):
    """One open tunnel to or from a service; an anyio ByteStream."""

    aclose = blocking(Tunnel.aclose)
    receive = blocking(Tunnel.receive)
    send = blocking(Tunnel.send)
    send_eof = blocking(Tunnel.send_eof)


class SyncNamespace(Blocking[N], Generic[N]):
    """Base of the blocking namespaces, such as SyncKv."""

    def within(self, timeout_s: float | None) -> Self:
        """Return this namespace with another time limit for answers, in seconds."""
        return type(self)(self._bridge, self._target.within(timeout_s))


class SyncAccess(SyncNamespace[Access]):
    """Checks accesses to resources, and sends messages on condition of a check."""

    check = blocking(Access.check)
    check_all = blocking(Access.check_all)
    send_checked = blocking(Access.send_checked)


class SyncAudit(SyncNamespace[Audit]):
    """Searches the gateway's audit log, and adds entries to it."""

    query = blocking(Audit.query)
    submit = blocking(Audit.submit)


class SyncAuthorityRequests(SyncNamespace[AuthorityRequests]):
    """Asks principals for authority, and decides such requests."""

    approve = blocking(AuthorityRequests.approve)
    cancel = blocking(AuthorityRequests.cancel)
    create = blocking(AuthorityRequests.create)
    deny = blocking(AuthorityRequests.deny)
    events = blocking_block(AuthorityRequests.events, BlockingStream)
    get = blocking(AuthorityRequests.get)
    list_pending = blocking(AuthorityRequests.list_pending)


class SyncCheckpoints(SyncNamespace[Checkpoints]):
    """Saves and loads state that a participant needs after a restart."""

    delete = blocking(Checkpoints.delete)
    list = blocking(Checkpoints.list)
    load = blocking(Checkpoints.load)
    save = blocking(Checkpoints.save)


class SyncGatewayQueries(SyncNamespace[GatewayQueries]):
    """Asks one gateway process for its health, counters and connections."""

    connection = blocking(GatewayQueries.connection)
    connections = blocking(GatewayQueries.connections)
    health = blocking(GatewayQueries.health)
    info = blocking(GatewayQueries.info)
    stats = blocking(GatewayQueries.stats)


class SyncGrants(SyncNamespace[Grants]):
    """Manages authority grants, which let one participant act for another."""

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
    revocations = blocking_block(Grants.revocations, BlockingStream)
    revoke = blocking(Grants.revoke)


class SyncKv(SyncNamespace[Kv]):
    """Reads and writes the gateway's key-value store."""

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
    """Reports progress of any work to other participants."""

    report = blocking(Progress.report)


class SyncProxy(SyncNamespace[Proxy]):
    """Sends HTTP requests to services behind the gateway, and answers them."""

    request = blocking(Proxy.request)
    serve = blocking_block(Proxy.serve, streamed_as(SyncProxiedRequest))
    stream = blocking_block(Proxy.stream, SyncResponse)
    tell_head = blocking(Proxy.tell_head)
    tell_piece = blocking(Proxy.tell_piece)


class SyncRegistry(SyncNamespace[Registry]):
    """Registers agent implementations, starts agents, and lists orchestrators."""

    delete = blocking(Registry.delete)
    get = blocking(Registry.get)
    launch = blocking(Registry.launch)
    list = blocking(Registry.list)
    orchestrators = blocking(Registry.orchestrators)
    register = blocking(Registry.register)
    update = blocking(Registry.update)


class SyncRules(SyncNamespace[Rules]):
    """Manages access rules, fallback levels and recorded decisions."""

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
    """Lists connected participants, and ends their sessions."""

    connection_status = blocking(Sessions.connection_status)
    disconnect = blocking(Sessions.disconnect)
    get = blocking(Sessions.get)
    list = blocking(Sessions.list)


class SyncTasks(SyncNamespace[Tasks]):
    """Creates tasks, finds them, and changes their states."""

    assignments = blocking_block(Tasks.assignments, BlockingStream)
    cancel = blocking(Tasks.cancel)
    claim = blocking(Tasks.claim)
    complete = blocking(Tasks.complete)
    create = blocking(Tasks.create)
    fail = blocking(Tasks.fail)
    follow = blocking_block(Tasks.follow, BlockingStream)
    get = blocking(Tasks.get)
    hibernate = blocking(Tasks.hibernate)
    hibernations = blocking_block(Tasks.hibernations, BlockingStream)
    pause = blocking(Tasks.pause)
    payload = blocking(Tasks.payload)
    query = blocking(Tasks.query)
    reject = blocking(Tasks.reject)
    resume = blocking(Tasks.resume)
    retry = blocking(Tasks.retry)
    run = blocking(Tasks.run)
    saved_result = blocking(Tasks.saved_result)
    subscribe = blocking(Tasks.subscribe)
    unsubscribe = blocking(Tasks.unsubscribe)
    wait = blocking(Tasks.wait)
    wait_for = blocking(Tasks.wait_for)


class SyncTokens(SyncNamespace[Tokens]):
    """Manages API tokens, with which other participants may connect."""

    create = blocking(Tokens.create)
    delete = blocking(Tokens.delete)
    get = blocking(Tokens.get)
    list = blocking(Tokens.list)
    revoke = blocking(Tokens.revoke)


class SyncTopics(SyncNamespace[Topics]):
    """Says what topics hold and how far they are read; purges them."""

    list = blocking(Topics.list)
    purge = blocking(Topics.purge)
    show = blocking(Topics.show)


class SyncTunnels(SyncNamespace[Tunnels]):
    """Opens tunnels to services, and accepts tunnels to this service."""

    accept = blocking_block(Tunnels.accept, SyncTunnel)
    incoming = blocking_block(Tunnels.incoming, BlockingStream)
    open = blocking_block(Tunnels.open, SyncTunnel)
    refuse = blocking(Tunnels.refuse)


class SyncWorkflow(SyncNamespace[Workflow]):
    """Runs workflows, and sends requests to the workflow engine through the gateway."""

    answer = blocking(Workflow.answer)
    apply = blocking(Workflow.apply)
    backfill_schedule = blocking(Workflow.backfill_schedule)
    cancel = blocking(Workflow.cancel)
    cancel_execution = blocking(Workflow.cancel_execution)
    cancel_join = blocking(Workflow.cancel_join)
    create_instance = blocking(Workflow.create_instance)
    create_rule = blocking(Workflow.create_rule)
    create_schedule = blocking(Workflow.create_schedule)
    create_state_machine = blocking(Workflow.create_state_machine)
    create_workflow = blocking(Workflow.create_workflow)
    definition = blocking(Workflow.definition)
    definitions = blocking(Workflow.definitions)
    delete_rule = blocking(Workflow.delete_rule)
    delete_schedule = blocking(Workflow.delete_schedule)
    delete_state_machine = blocking(Workflow.delete_state_machine)
    delete_webhook = blocking(Workflow.delete_webhook)
    delete_workflow = blocking(Workflow.delete_workflow)
    diagram = blocking(Workflow.diagram)
    execution = blocking(Workflow.execution)
    executions = blocking(Workflow.executions)
    foretell = blocking(Workflow.foretell)
    fork = blocking(Workflow.fork)
    get_execution = blocking(Workflow.get_execution)
    get_instance = blocking(Workflow.get_instance)
    get_join = blocking(Workflow.get_join)
    get_rule = blocking(Workflow.get_rule)
    get_state_machine = blocking(Workflow.get_state_machine)
    get_workflow = blocking(Workflow.get_workflow)
    history = blocking(Workflow.history)
    list_executions = blocking(Workflow.list_executions)
    list_instances = blocking(Workflow.list_instances)
    list_joins = blocking(Workflow.list_joins)
    list_rules = blocking(Workflow.list_rules)
    list_schedules = blocking(Workflow.list_schedules)
    list_state_machines = blocking(Workflow.list_state_machines)
    list_webhooks = blocking(Workflow.list_webhooks)
    list_workflows = blocking(Workflow.list_workflows)
    migrate = blocking(Workflow.migrate)
    pause = blocking(Workflow.pause)
    pause_schedule = blocking(Workflow.pause_schedule)
    redrive = blocking(Workflow.redrive)
    replay = blocking(Workflow.replay)
    requests = blocking_block(Workflow.requests, BlockingStream)
    respond = blocking(Workflow.respond)
    resume = blocking(Workflow.resume)
    resume_schedule = blocking(Workflow.resume_schedule)
    retry = blocking(Workflow.retry)
    rotate_webhook = blocking(Workflow.rotate_webhook)
    run = blocking(Workflow.run)
    send_event = blocking(Workflow.send_event)
    signal = blocking(Workflow.signal)
    timeline = blocking(Workflow.timeline)
    update_rule = blocking(Workflow.update_rule)
    upsert_schedule = blocking(Workflow.upsert_schedule)
    wait = blocking(Workflow.wait)


class SyncWorkspaces(SyncNamespace[Workspaces]):
    """Manages workspaces, and moves a user's window to another."""

    create = blocking(Workspaces.create)
    delete = blocking(Workspaces.delete)
    get = blocking(Workspaces.get)
    list = blocking(Workspaces.list)
    message_flow = blocking(Workspaces.message_flow)
    switch = blocking(Workspaces.switch)
    update = blocking(Workspaces.update)


class JobCalls(Blocking[Job]):
    """A task that this worker has claimed; the body of `with job:` works on it."""

    ask = blocking(Job.ask)
    complete = blocking(Job.complete)
    fail = blocking(Job.fail)
    hibernate = blocking(Job.hibernate)
    listen = blocking(Job.listen)
    load = blocking(Job.load)
    progress = blocking(Job.progress)
    save = blocking(Job.save)
    wait_for_authority = blocking(Job.wait_for_authority)
    wait_for_input = blocking(Job.wait_for_input)
    wait_for_tasks = blocking(Job.wait_for_tasks)
    wait_until = blocking(Job.wait_until)

    @property
    def attempt(self) -> int:
        """Which attempt at the task this is; 1 for the first."""
        return self._target.attempt

    @property
    def creator(self) -> str:
        """The identity of the task's creator, which is the topic for results."""
        return self._target.creator

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._target.id

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata that the creator has given the task."""
        return self._target.metadata

    @property
    def payload(self) -> bytes:
        """The bytes that the creator has given the task to work on."""
        return self._target.payload

    @property
    def saved_key(self) -> str:
        """The key of the checkpoint that `save` writes, for `complete`."""
        return self._target.saved_key

    @property
    def text(self) -> str:
        """The payload as UTF-8, with invalid bytes replaced."""
        return self._target.text

    @property
    def type(self) -> str:
        """The kind of work, as the creator of the task has named it."""
        return self._target.type

    @property
    def waits(self) -> bool:
        """Whether the block of the task is in a wait, such as `wait_for_input`."""
        return self._target.waits

    @property
    def assignment(self) -> Assignment:
        """The gateway's assignment of this task to this worker."""
        return self._target.assignment

    @property
    def end(self) -> JobEnd | None:
        """How the task ended for this worker; None while the worker has it."""
        return self._target.end

    @property
    def reason(self) -> str:
        """The error text with which the task failed."""
        return self._target.reason

    @property
    def remark(self) -> str:
        """The text that is sent with COMPLETE. It may be set."""
        return self._target.remark

    @remark.setter
    def remark(self, value: str) -> None:
        self._target.remark = value

    @property
    def task(self) -> Task:
        """The task as it was when this worker claimed it."""
        return self._target.task


class ClientCalls(Blocking[C], Generic[C]):
    """Blocking methods and namespaces of the clients of all kinds."""

    access = BlockingAttribute(SyncAccess)
    audit = BlockingAttribute(SyncAudit)
    authority_requests = BlockingAttribute(SyncAuthorityRequests)
    checkpoints = BlockingAttribute(SyncCheckpoints)
    gateway = BlockingAttribute(SyncGatewayQueries)
    grants = BlockingAttribute(SyncGrants)
    kv = BlockingAttribute(SyncKv)
    progress = BlockingAttribute(SyncProgress)
    proxy = BlockingAttribute(SyncProxy)
    registry = BlockingAttribute(SyncRegistry)
    rules = BlockingAttribute(SyncRules)
    sessions = BlockingAttribute(SyncSessions)
    tasks = BlockingAttribute(SyncTasks)
    tokens = BlockingAttribute(SyncTokens)
    topics = BlockingAttribute(SyncTopics)
    tunnels = BlockingAttribute(SyncTunnels)
    workflow = BlockingAttribute(SyncWorkflow)
    workspaces = BlockingAttribute(SyncWorkspaces)

    flush = blocking(Client.flush)
    publish = blocking_value(Client.publish, SyncPublication)
    reply = blocking(Client.reply)
    request = blocking(Client.request)
    send = blocking(Client.send)
    statistics = called_at_once(Client.statistics)
    tell = blocking(Client.tell)
    tell_confirmed = blocking(Client.tell_confirmed)
    answer = blocking(ToWork.answer)
    send_event = blocking(WithTelemetry.send_event)
    send_input = blocking(ToWork.send_input)
    send_metric = blocking(WithTelemetry.send_metric)
    send_to_agent = blocking(ToWork.send_to_agent)
    send_to_agents = blocking(ToEveryone.send_to_agents)
    send_to_bridge = blocking(ToParticipants.send_to_bridge)
    send_to_service = blocking(ToParticipants.send_to_service)
    send_to_task = blocking(ToWork.send_to_task)
    send_to_user = blocking(ToParticipants.send_to_user)
    send_to_users = blocking(ToEveryone.send_to_users)
    send_to_window = blocking(ToParticipants.send_to_window)
    send_to_workers = blocking(ToWork.send_to_workers)
    send_to_user_everywhere = blocking(ToUsersEverywhere.send_to_user_everywhere)
    say_agents = blocking(OrchestratorClient.say_agents)
    switch_workspace = blocking(UserClient.switch_workspace)

    @property
    def errors(self) -> BlockingStream[AetherError]:
        """A feed of refusals and notices for which no caller waits; it keeps the last 256."""
        return BlockingStream(self._bridge, self._target.errors)

    @property
    def progress_updates(self) -> BlockingStream[ProgressUpdate]:
        """A feed of progress that others report; it keeps the last 256 unread ones."""
        return BlockingStream(self._bridge, self._target.progress_updates)

    @property
    def signals(self) -> BlockingStream[pb.Signal]:
        """A feed of gateway signals, such as that it drains or disconnects the client."""
        return BlockingStream(self._bridge, self._target.signals)

    @property
    def states(self) -> BlockingStream[State]:
        """A feed of every change of `state` from the beginning; it keeps 64 unread ones."""
        return BlockingStream(self._bridge, self._target.states)

    @property
    def topic(self) -> str:
        """The identity and topic of this participant, such as "ag::default::planner::1"."""
        return self._target.topic

    @property
    def workspace(self) -> str:
        """The workspace of this participant; "" if it is in none."""
        return self._target.workspace
