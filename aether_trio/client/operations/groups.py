"""`agent.rules`, in part: groups and roles to which access rules may be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, Principal, authorization_context, principal_ref
from aether_trio.client.operations.records import Seconds, Wire, from_time, read
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.ACLOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of principals, to which access rules may be given."""

    group_id: str
    name: Annotated[str, Wire("group_name")]
    description: str
    created_by: str
    created_at: Seconds
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role of principals, to which access rules may be given."""

    role_id: str
    name: Annotated[str, Wire("role_name")]
    description: str
    created_by: str
    created_at: Seconds
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A member of a group. `expires_at` None is never."""

    group_name: str
    member_type: str
    member_id: str
    granted_by: str
    granted_at: Seconds
    expires_at: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleAssignment:
    """A principal with a role. `expires_at` None is never."""

    role_name: str
    assignee_type: str
    assignee_id: str
    granted_by: str
    granted_at: Seconds
    expires_at: Seconds


class Groups(Namespace):
    """Manages groups and roles, to which access rules may be given."""

    async def create_group(
        self, name: str, *, description: str = "", created_by: str = "", metadata: Mapping[str, str] | None = None
    ) -> Group:
        """Create a group."""
        request = pb.ACLGroupRequest(
            name=name, description=description, created_by=created_by, metadata=dict(metadata or {})
        )
        return read(Group, (await self._do(_Op(op=_Op.CREATE_GROUP, name=name, group_request=request))).group)

    async def delete_group(self, name: str) -> None:
        """Delete a group, with its memberships."""
        await self._do(_Op(op=_Op.DELETE_GROUP, name=name))

    async def get_group(self, name: str) -> Group:
        """Return one group. Raises Refused if there is none."""
        return read(Group, (await self._do(_Op(op=_Op.GET_GROUP, name=name))).group)

    async def list_groups(self) -> tuple[Group, ...]:
        """List all groups."""
        answer = await self._do(_Op(op=_Op.LIST_GROUPS))
        return tuple(read(Group, one) for one in answer.groups)

    async def add_member(
        self, group: str, member_type: str, member_id: str, *, granted_by: str = "", expires_at: datetime | None = None
    ) -> None:
        """Add a member to a group; a member may be a group itself."""
        request = pb.ACLGroupMemberRequest(
            member_type=member_type, member_id=member_id, granted_by=granted_by, expires_at=from_time(expires_at)
        )
        await self._do(_Op(op=_Op.ADD_GROUP_MEMBER, name=group, member_request=request))

    async def remove_member(self, group: str, member_type: str, member_id: str) -> None:
        """Remove a member from a group."""
        request = pb.ACLGroupMemberRequest(member_type=member_type, member_id=member_id)
        await self._do(_Op(op=_Op.REMOVE_GROUP_MEMBER, name=group, member_request=request))

    async def members(self, group: str) -> tuple[Membership, ...]:
        """List the members of a group."""
        answer = await self._do(_Op(op=_Op.LIST_GROUP_MEMBERS, name=group))
        return tuple(read(Membership, one) for one in answer.group_members)

    async def groups_of(self, principal: Principal | str) -> tuple[Membership, ...]:
        """List the memberships of a principal in groups."""
        answer = await self._do(_Op(op=_Op.LIST_PRINCIPAL_GROUPS, principal=principal_ref(principal)))
        return tuple(read(Membership, one) for one in answer.group_members)

    async def create_role(
        self, name: str, *, description: str = "", created_by: str = "", metadata: Mapping[str, str] | None = None
    ) -> Role:
        """Create a role."""
        request = pb.ACLRoleRequest(
            name=name, description=description, created_by=created_by, metadata=dict(metadata or {})
        )
        return read(Role, (await self._do(_Op(op=_Op.CREATE_ROLE, name=name, role_request=request))).role)

    async def delete_role(self, name: str) -> None:
        """Delete a role, with its assignments to principals."""
        await self._do(_Op(op=_Op.DELETE_ROLE, name=name))

    async def get_role(self, name: str) -> Role:
        """Return one role. Raises Refused if there is none."""
        return read(Role, (await self._do(_Op(op=_Op.GET_ROLE, name=name))).role)

    async def list_roles(self) -> tuple[Role, ...]:
        """List all roles."""
        answer = await self._do(_Op(op=_Op.LIST_ROLES))
        return tuple(read(Role, one) for one in answer.roles)

    async def assign_role(
        self,
        role: str,
        assignee_type: str,
        assignee_id: str,
        *,
        granted_by: str = "",
        expires_at: datetime | None = None,
    ) -> None:
        """Give a principal a role; an assignee may be a group."""
        request = pb.ACLRoleAssignmentRequest(
            assignee_type=assignee_type,
            assignee_id=assignee_id,
            granted_by=granted_by,
            expires_at=from_time(expires_at),
        )
        await self._do(_Op(op=_Op.ASSIGN_ROLE, name=role, assignment_request=request))

    async def unassign_role(self, role: str, assignee_type: str, assignee_id: str) -> None:
        """Take a role from a principal."""
        request = pb.ACLRoleAssignmentRequest(assignee_type=assignee_type, assignee_id=assignee_id)
        await self._do(_Op(op=_Op.UNASSIGN_ROLE, name=role, assignment_request=request))

    async def role_assignments(self, role: str) -> tuple[RoleAssignment, ...]:
        """List the principals that have a role."""
        answer = await self._do(_Op(op=_Op.LIST_ROLE_ASSIGNMENTS, name=role))
        return tuple(read(RoleAssignment, one) for one in answer.role_assignments)

    async def roles_of(self, principal: Principal | str) -> tuple[RoleAssignment, ...]:
        """List the roles of a principal."""
        answer = await self._do(_Op(op=_Op.LIST_PRINCIPAL_ROLES, principal=principal_ref(principal)))
        return tuple(read(RoleAssignment, one) for one in answer.role_assignments)

    async def _do(self, op: pb.ACLOperation, authorization: Authorization | None = None) -> pb.ACLResponse:
        context = authorization_context(authorization)
        if context is not None:
            op.authorization.CopyFrom(context)
        answer: pb.ACLResponse = await self._ask("acl_op", op)
        return answer
