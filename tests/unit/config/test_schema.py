"""The JSON Schema of the file."""

from __future__ import annotations

import json

from deployer.config.schema import json_schema


def test_the_schema_describes_every_table_and_refuses_unknown_keys() -> None:
    schema = json.loads(json.dumps(json_schema()))
    worker = schema["$defs"]["Worker"]
    assert worker["oneOf"] == [{"required": ["command"]}, {"required": ["app"]}]
    assert worker["additionalProperties"] is False
    assert set(schema["$defs"]["Config"]["properties"]) == {
        "name",
        "worker",
        "listen",
        "root",
        "source",
        "health",
        "rollout",
        "build",
        "release",
        "hooks",
        "watch",
    }
