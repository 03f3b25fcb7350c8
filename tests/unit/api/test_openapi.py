"""The page of the API says what the API does, since both are made from one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from deployer.api import openapi
from deployer.api.app import Api
from deployer.api.streams import Bell
from deployer.manager.manager import Manager
from deployer.wire import schema

DOCS = Path(__file__).parents[3] / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def api() -> Api:
    return Api(cast(Manager, None), Bell())


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    return json.loads(msgspec.json.encode(openapi.document(api.endpoints)))  # type: ignore[no-any-return]


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refs(inner)


def test_every_endpoint_is_in_the_document(api: Api, document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(e.method, e.path.replace(":int", "")) for e in api.endpoints}


def test_the_application_serves_every_endpoint_and_its_page(api: Api) -> None:
    served = {(method, route.path) for route in api.application().routes for method in route.methods or ()}  # type: ignore[attr-defined]
    assert served >= {(e.method, e.path) for e in api.endpoints}
    assert served >= {("GET", "/openapi.json"), ("GET", "/docs")}


def test_every_endpoint_is_in_the_architecture_page(api: Api) -> None:
    path = r"(?:/v1|/metrics)(?:/(?:[a-z]+|\{[a-z]+\}))*"
    rows = set(re.findall(rf"^\| (GET|POST) ({path})[ ?]", DOCS.read_text(), re.MULTILINE))
    assert rows == {(e.method, e.path.replace(":int", "")) for e in api.endpoints}


def test_every_schema_that_is_referred_to_is_there(document: dict[str, Any]) -> None:
    there = document["components"]["schemas"]
    found = set(refs(document))
    assert found
    assert {ref.removeprefix("#/components/schemas/") for ref in found} <= set(there)
    assert set(there) >= {"Status", "RolloutInfo", "ReleaseInfo", "Event", "LogLine", "Problem", "DeployRequest"}


def test_schemas_describe_what_is_sent(document: dict[str, Any]) -> None:
    """Each field of each struct is in its schema, and those without a default are required."""
    for name, described in document["components"]["schemas"].items():
        kind = getattr(schema, name)
        fields = msgspec.structs.fields(kind)
        assert set(described["properties"]) == {field.encode_name for field in fields}
        assert set(described.get("required", [])) == {field.encode_name for field in fields if field.required}


def test_bodies_answers_and_refusals_are_described(api: Api, document: dict[str, Any]) -> None:
    for endpoint in api.endpoints:
        path = endpoint.path.replace(":int", "")
        operation = document["paths"][path][endpoint.method.lower()]
        assert operation["summary"] == endpoint.summary
        assert endpoint.media in operation["responses"][str(endpoint.status)]["content"]
        refused = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert refused["properties"]["error"] == {"$ref": "#/components/schemas/Problem"}
        if endpoint.body is None:
            assert "requestBody" not in operation
        else:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert body == {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        asked = {parameter["name"] for parameter in operation.get("parameters", [])}
        assert asked == {*endpoint.query, *re.findall(r"\{([a-z]+)\}", path)}


def test_operations_of_one_path_do_not_hide_each_other(document: dict[str, Any]) -> None:
    assert sum(len(item) for item in document["paths"].values()) == 22


def test_the_page_for_people_names_every_path(api: Api) -> None:
    page = openapi.page(api.endpoints)
    for endpoint in api.endpoints:
        assert endpoint.path.replace(":int", "") in page
        assert endpoint.summary in page
