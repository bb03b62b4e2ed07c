"""Reads a policy file, YAML, with the line of each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aether_trio.cli import exits
from aether_trio.model.access.policy import Policy
from aether_trio.model.access.policy_reading import PolicyError, PolicyNode, read_policy

_SCALARS = {
    "tag:yaml.org,2002:int": yaml.SafeLoader.construct_yaml_int,
    "tag:yaml.org,2002:float": yaml.SafeLoader.construct_yaml_float,
    "tag:yaml.org,2002:bool": yaml.SafeLoader.construct_yaml_bool,
    "tag:yaml.org,2002:null": yaml.SafeLoader.construct_yaml_null,
}
"""Other scalars stay texts, dates as well."""


def load_policy(path: str) -> Policy:
    """Return the policy in a file. Raises CliError with every problem and its line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise exits.CliError(f"cannot read {path}: {error.strerror}", exits.SETTINGS) from None
    except UnicodeDecodeError as error:
        raise exits.CliError(f"cannot read {path}: {error}", exits.SETTINGS) from None
    try:
        return read_policy(policy_node(text))
    except PolicyError as error:
        lines = [f"{path}:{one.line}: {one.text}" for one in error.problems]
        raise exits.CliError("\n".join(lines), exits.SETTINGS, lines=True) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise exits.CliError(f"{path}{line}: {error.problem or error.context}", exits.SETTINGS) from None
    except yaml.YAMLError as error:
        raise exits.CliError(f"{path}: {error}", exits.SETTINGS, lines=True) from None


def policy_node(text: str) -> PolicyNode:
    """Return the document of a YAML text. Raises yaml.YAMLError."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise yaml.YAMLError("aliases (*name) are not read; `names` has short names for principals")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return PolicyNode(1) if root is None else _converted(root, yaml.SafeLoader(""))


def _converted(node: yaml.Node, loader: yaml.SafeLoader) -> PolicyNode:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return PolicyNode(line, items=tuple(_converted(one, loader) for one in node.value))
    if isinstance(node, yaml.MappingNode):
        pairs = tuple((_converted(key, loader), _converted(value, loader)) for key, value in node.value)
        return PolicyNode(line, pairs=pairs)
    construct: Any = _SCALARS.get(node.tag)
    return PolicyNode(line, node.value if construct is None else construct(loader, node))
