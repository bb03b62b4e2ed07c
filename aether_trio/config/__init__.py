"""The settings: what can be configured, the sources of values, the description.

Layers, the later one wins: defaults, YAML file, environment (`AETHER_SECTION__KEY`), command-line
flags, `--set KEY.PATH=VALUE`. An unknown key is an error that names its source and the nearest
known key; a wrong value is an error that names the expected type and unit.
"""

from aether_trio.config.describe import describe
from aether_trio.config.keys import Key, SettingsError, all_keys
from aether_trio.config.kubernetes import service_variables
from aether_trio.config.loading import Loaded, load_settings, load_settings_with_origins
from aether_trio.config.settings import (
    ApiKey,
    AuditSettings,
    AuthSettings,
    ClaimsMapping,
    GatewaySettings,
    GrpcSettings,
    HmacKey,
    JwtProvider,
    JwtSettings,
    LoggingSettings,
    LogSettings,
    OpsSettings,
    Settings,
    StorageSettings,
    TaskSettings,
    TlsSettings,
    is_loopback,
)

__all__ = [
    "ApiKey",
    "AuditSettings",
    "AuthSettings",
    "ClaimsMapping",
    "GatewaySettings",
    "GrpcSettings",
    "HmacKey",
    "JwtProvider",
    "JwtSettings",
    "Key",
    "Loaded",
    "LogSettings",
    "LoggingSettings",
    "OpsSettings",
    "Settings",
    "SettingsError",
    "StorageSettings",
    "TaskSettings",
    "TlsSettings",
    "all_keys",
    "describe",
    "is_loopback",
    "load_settings",
    "load_settings_with_origins",
    "service_variables",
]
