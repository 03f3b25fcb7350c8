"""The JSON Schema of deployer.toml, for editors and `deployer config schema`."""

from __future__ import annotations

from typing import Any

import msgspec

from deployer.config.model import Config


def json_schema() -> dict[str, Any]:
    """The schema as JSON data; the tables lie under "$defs"."""
    schema = msgspec.json.schema(Config)
    schema["$defs"]["Worker"]["oneOf"] = [{"required": [key]} for key in ("command", "app")]
    return schema
