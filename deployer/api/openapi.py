"""The description of the control API, made from the same table that serves it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import msgspec

from deployer import __version__
from deployer.wire.schema import Problem

if TYPE_CHECKING:
    from deployer.api.app import Endpoint

REF = "#/components/schemas/{name}"


def document(endpoints: list[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    kinds = [kind for e in endpoints for kind in (e.answer, e.body) if kind not in (None, dict)]
    schemas, components = msgspec.json.schema_components([*kinds, Problem], ref_template=REF)
    by_kind = dict(zip(map(repr, [*kinds, Problem]), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":int", "")
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "deployer control API", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def page(endpoints: list[Endpoint]) -> str:
    """A plain page for people; scripts read /openapi.json."""
    rows = "".join(
        f"<tr><td><code>{e.method}</code></td><td><code>{html.escape(e.path.replace(':int', ''))}</code></td>"
        f"<td>{html.escape(e.summary)}</td><td>{e.body.__name__ if e.body else ''}</td>"
        f"<td>{html.escape(_name(e.answer))}</td></tr>"
        for e in endpoints
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>deployer control API</title>"
        f"<h1>deployer control API {__version__}</h1><p>Machine form: <a href=/openapi.json>/openapi.json</a>"
        "<table><thead><tr><th>Method<th>Path<th>What<th>Body<th>Answer</thead>"
        f"<tbody>{rows}</tbody></table></html>"
    )


def _operation(endpoint: Endpoint, by_kind: dict[str, Any]) -> dict[str, Any]:
    schema = by_kind.get(repr(endpoint.answer), {"type": "object"})
    error = {"type": "object", "properties": {"error": by_kind[repr(Problem)]}}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {
            str(endpoint.status): {"description": "done", "content": {endpoint.media: {"schema": schema}}},
            "default": {"description": "refused", "content": {"application/json": {"schema": error}}},
        },
    }
    names = [(name, "query", False) for name in endpoint.query]
    names += [(name, "path", True) for name in ("id", "name") if f"{{{name}" in endpoint.path]
    if names:
        operation["parameters"] = [
            {"name": name, "in": place, "required": needed, "schema": {"type": "string"}}
            for name, place, needed in names
        ]
    if endpoint.body is not None:
        content = {"application/json": {"schema": by_kind[repr(endpoint.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _name(kind: Any) -> str:
    return (
        getattr(kind, "__name__", "") if not getattr(kind, "__args__", None) else str(kind).split(".")[-1].rstrip("]")
    )
