"""Logs, metrics and health of a gateway, and the HTTP port that shows them."""

from aether_trio.telemetry.health import GatewayHealth, Phase, Readiness
from aether_trio.telemetry.logging import configure_logging
from aether_trio.telemetry.metrics import Metrics
from aether_trio.telemetry.ops import TailSource, serve_ops

__all__ = ["GatewayHealth", "Metrics", "Phase", "Readiness", "TailSource", "configure_logging", "serve_ops"]
