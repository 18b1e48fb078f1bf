"""`--set NAME=VALUE` of the command line: a config's fields by dotted names, values in YAML."""

from collections.abc import Sequence
from typing import Any

import yaml

from engine.config import EngineConfig, changed, merged
from engine.errors import ConfigError


def with_settings(config: EngineConfig, settings: Sequence[str]) -> EngineConfig:
    """A config with these fields replaced, checked anew."""
    changes: dict[str, Any] = {}
    for setting in settings:
        changes = merged(changes, change_of(*parsed(setting)))
    try:
        return changed(config, changes)
    except ConfigError as error:
        raise ConfigError(f"--set: {error}") from error


def parsed(setting: str) -> tuple[str, Any]:
    """The name and the value of `fully_automatic.points_per_side=16`."""
    name, separator, value = setting.partition("=")
    if not separator:
        raise ConfigError(f"--set {setting}: expected name=value, such as seed=1")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not YAML, such as 16 or 0.8") from error


def change_of(name: str, value: Any) -> dict[str, Any]:
    """Nested fields, as `merged` takes them: `a.b` and 1 become `{"a": {"b": 1}}`."""
    field, dot, rest = name.partition(".")
    return {field: change_of(rest, value) if dot else value}
