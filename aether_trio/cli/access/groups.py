"""`aether access groups` and `roles`: sets of principals that rules may name."""

from __future__ import annotations

from typing import Any, Final

import click

from aether_trio.cli.access.arguments import END, PRINCIPAL, until
from aether_trio.cli.access.asking import AccessSource, say_done, source_options
from aether_trio.cli.output import print_json, print_table
from aether_trio.cli.records import with_iso_times
from aether_trio.model.access.spellings import moment_text
from aether_trio.model.access.spellings import principal_text as principal_of
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation

_CREATE: Final = {"group": Op.CREATE_GROUP, "role": Op.CREATE_ROLE}
_DELETE: Final = {"group": Op.DELETE_GROUP, "role": Op.DELETE_ROLE}
_LIST: Final = {"group": Op.LIST_GROUPS, "role": Op.LIST_ROLES}
_ADD: Final = {"group": Op.ADD_GROUP_MEMBER, "role": Op.ASSIGN_ROLE}
_REMOVE: Final = {"group": Op.REMOVE_GROUP_MEMBER, "role": Op.UNASSIGN_ROLE}
_MEMBERS: Final = {"group": Op.LIST_GROUP_MEMBERS, "role": Op.LIST_ROLE_ASSIGNMENTS}


def _commands(kind: str) -> click.Group:
    """Return the commands about groups, or those about roles."""

    @click.group(f"{kind}s", help=f"Show and change {kind}s, which rules name as {kind}:NAME.")
    def group() -> None:
        pass

    @group.command(help=f"Make a {kind} without members.")
    @click.argument("name")
    @click.option("--description", default="", help="What it is for.")
    @source_options
    def create(source: AccessSource, name: str, description: str) -> None:
        op = Op(op=_CREATE[kind], name=name)
        (op.group_request if kind == "group" else op.role_request).description = description
        say_done(source.ask(op).message)

    @group.command(help=f"Delete a {kind} with its members and its rules.")
    @click.argument("name")
    @source_options
    def delete(source: AccessSource, name: str) -> None:
        say_done(source.ask(Op(op=_DELETE[kind], name=name)).message)

    @group.command("list", help=f"Show all {kind}s.")
    @click.option("--json", "as_json", is_flag=True, help="A JSON array.")
    @source_options
    def list_all(source: AccessSource, as_json: bool) -> None:
        answer = source.ask(Op(op=_LIST[kind]))
        found: list[dict[str, Any]] = [{"name": one.group_name, **_record(one)} for one in answer.groups] + [
            {"name": one.role_name, **_record(one)} for one in answer.roles
        ]
        if as_json:
            print_json([with_iso_times(one) for one in found], indent=2)
            return
        print_table(
            (kind, "description", "made by", "since"),
            [
                (one["name"], one["description"], one["created_by"], moment_text(one["created_at"] * 1000))
                for one in found
            ],
            f"there is no {kind}",
        )

    @group.command(help=f"Put a principal, or a group or role, into a {kind}.")
    @click.argument("name")
    @click.argument("member", metavar="PRINCIPAL", type=PRINCIPAL)
    @click.option("--expires", type=END, metavar="8h|DATE", help="When the membership ends.  [default: never]")
    @source_options
    def add(source: AccessSource, name: str, member: tuple[str, str], expires: int | None) -> None:
        say_done(source.ask(_change(kind, _ADD[kind], name, member, expires or 0)).message)

    @group.command(help=f"Take a principal out of a {kind}.")
    @click.argument("name")
    @click.argument("member", metavar="PRINCIPAL", type=PRINCIPAL)
    @source_options
    def remove(source: AccessSource, name: str, member: tuple[str, str]) -> None:
        say_done(source.ask(_change(kind, _REMOVE[kind], name, member, 0)).message)

    @group.command(help=f"Show what is in a {kind} directly.")
    @click.argument("name")
    @click.option("--json", "as_json", is_flag=True, help="A JSON array.")
    @source_options
    def members(source: AccessSource, name: str, as_json: bool) -> None:
        answer = source.ask(Op(op=_MEMBERS[kind], name=name))
        found: list[dict[str, Any]] = [
            {"type": one.member_type, "id": one.member_id, **_membership(one)} for one in answer.group_members
        ] + [{"type": one.assignee_type, "id": one.assignee_id, **_membership(one)} for one in answer.role_assignments]
        if as_json:
            print_json([with_iso_times(one) for one in found], indent=2)
            return
        print_table(
            ("member", "until", "added by", "since"),
            [
                (
                    principal_of(one["type"], one["id"]),
                    until(one["expires_at"]),
                    one["granted_by"],
                    moment_text(one["granted_at"] * 1000),
                )
                for one in found
            ],
            f"{kind} {name} has no members",
        )

    return group


def _change(
    kind: str, what: pb.ACLOperation.OpType.ValueType, name: str, member: tuple[str, str], expires_at: int
) -> pb.ACLOperation:
    op = Op(op=what, name=name)
    if kind == "group":
        request = pb.ACLGroupMemberRequest(member_type=member[0], member_id=member[1], expires_at=expires_at)
        op.member_request.CopyFrom(request)
    else:
        assignment = pb.ACLRoleAssignmentRequest(assignee_type=member[0], assignee_id=member[1], expires_at=expires_at)
        op.assignment_request.CopyFrom(assignment)
    return op


def _record(one: pb.ACLGroupInfo | pb.ACLRoleInfo) -> dict[str, Any]:
    return {
        "description": one.description,
        "created_by": one.created_by,
        "created_at": one.created_at,
        "metadata": dict(one.metadata),
    }


def _membership(one: pb.ACLGroupMemberInfo | pb.ACLRoleAssignmentInfo) -> dict[str, Any]:
    return {"granted_by": one.granted_by, "granted_at": one.granted_at, "expires_at": one.expires_at}


groups: Final = _commands("group")
roles: Final = _commands("role")
