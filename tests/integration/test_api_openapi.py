"""The API describes itself, completely and as OpenAPI wants it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from quart import Blueprint, Response

from fastlane_core.api import create_api
from tests.integration.api_harness import Api, running_api

plugin = Blueprint("plugin", __name__)


@plugin.route("/plugin/<int:number>/", methods=["POST", "PUT", "DEL"])
async def do_something(number: int) -> Response:
    """Do something.

    At length.
    """
    return Response("")


async def document_of(api: Api) -> dict[str, Any]:
    answer = await api.http.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


async def test_document_is_what_openapi_wants(tmp_path: Path) -> None:
    async with running_api(tmp_path, blueprints=[plugin]) as api:
        document = await document_of(api)

    OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == "1.2.3"


async def test_every_route_is_described(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api:
        paths = (await document_of(api))["paths"]
        rules = list(create_api(api.context).url_map.iter_rules())

    for rule in rules:
        for method in (rule.methods or {"GET"}) - {"HEAD", "OPTIONS"}:
            operation = paths[re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", rule.rule)][method.lower()]
            assert operation["summary"].endswith(".")
            assert {each["name"] for each in operation["parameters"] if each["in"] == "path"} == rule.arguments
            # What only a table tells is told: a route that the table lacks has no more than `default`.
            assert "default" not in operation["responses"], f"{rule.endpoint} is not described"
    identifiers = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(set(identifiers)) == len(identifiers)


async def test_table_has_no_route_that_is_gone(tmp_path: Path) -> None:
    from fastlane_core.api.openapi import _OPERATIONS

    async with running_api(tmp_path) as api:
        endpoints = {rule.endpoint for rule in create_api(api.context).url_map.iter_rules()}

    assert set(_OPERATIONS) <= endpoints


async def test_routes_of_plugins_are_described_by_their_rules_and_docstrings(tmp_path: Path) -> None:
    async with running_api(tmp_path, blueprints=[plugin]) as api:
        path = (await document_of(api))["paths"]["/plugin/{number}/"]

    assert sorted(path) == ["post", "put"]
    assert path["post"]["summary"] == "Do something."
    assert path["post"]["parameters"][0]["schema"] == {"type": "integer"}
    assert path["post"]["operationId"] != path["put"]["operationId"]


async def test_job_is_described_with_the_options_of_runners(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api:
        document = await document_of(api)

    body = document["paths"]["/tasks/{task_id}/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Job"}
    schemas = document["components"]["schemas"]
    assert schemas["Job"]["required"] == ["image", "command"]
    assert {"$ref": "#/components/schemas/DockerOptions"} in schemas["Job"]["properties"]["docker"]["anyOf"]
    assert "memory" in schemas["DockerOptions"]["properties"]


@pytest.mark.parametrize(
    ("method", "path", "template"),
    [
        ("POST", "/tasks/t/", "/tasks/{task_id}/"),
        ("GET", "/tasks/?page=x", "/tasks/"),
        ("GET", "/search/", "/search/"),
        ("GET", "/tasks/none/", "/tasks/{task_id}/"),
        ("GET", "/tasks/none/?cursor=x", "/tasks/{task_id}/"),
        ("POST", "/tasks/t/jobs/none/stop/", "/tasks/{task_id}/jobs/{job_id}/stop/"),
        ("GET", "/tasks/t/jobs/none/logs/", "/tasks/{task_id}/jobs/{job_id}/{output}/"),
        ("GET", "/tasks/t/jobs/none/follow/", "/tasks/{task_id}/jobs/{job_id}/follow/"),
        ("GET", "/tasks/t/jobs/none/ws/", "/tasks/{task_id}/jobs/{job_id}/ws/"),
    ],
)
async def test_errors_are_as_described(tmp_path: Path, method: str, path: str, template: str) -> None:
    async with running_api(tmp_path) as api:
        document = await document_of(api)
        answer = await api.http.request(method, path)

    described = document["paths"][template][method.lower()]["responses"]
    assert str(answer.status_code) in described
    shape = document["components"]["schemas"]["Error"]
    assert set(shape["required"]) <= set(answer.json()) <= set(shape["properties"])
