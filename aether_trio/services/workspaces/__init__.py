"""Creates, describes and deletes workspaces; lets users switch between them."""

from aether_trio.services.workspaces.service import WorkspaceService
from aether_trio.services.workspaces.switch import WorkspaceSwitch

__all__ = ["WorkspaceService", "WorkspaceSwitch"]
