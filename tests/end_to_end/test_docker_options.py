"""Job options of the Docker farm, from POST to container, as clients see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.end_to_end.service import Service
from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services

OPTIONS = {
    "entrypoint",
    "workdir",
    "user",
    "memory",
    "cpus",
    "gpus",
    "shmSize",
    "ulimits",
    "mounts",
    "networks",
    "extraHosts",
    "labels",
    "readOnly",
    "init",
    "capDrop",
    "capAdd",
    "securityOpt",
    "devices",
    "privileged",
    "platform",
    "pullPolicy",
    "stopSignal",
    "stopGrace",
}


@pytest.fixture
def service(tmp_path: Path, docker_engine: SharedEngine) -> Iterator[Service]:
    """`fastlane dev` with a farm that allows little."""
    farm = {"hosts": [docker_engine.url], "name": "small", "allow": {"binds": ["/srv/*"]}, "limits": {"memory": "64m"}}
    service = Service(tmp_path, {"RUNNERS": ["docker"], "DOCKER_HOSTS": json.dumps(farm)}).start()
    yield service
    service.close()


def test_every_option_is_in_the_openapi_document(service: Service) -> None:
    document = service.get_json("/openapi.json")

    OpenAPIV31SpecValidator(document).validate()
    schemas = document["components"]["schemas"]
    options = schemas["DockerOptions"]["properties"]
    assert set(options) == OPTIONS
    assert all(option["description"] for option in options.values())
    assert {"type": "integer"} in options["memory"]["anyOf"]
    assert {"type": "string"} in options["memory"]["anyOf"]
    assert "docker.extraHosts" in schemas["Job"]["properties"]["additionalDNSEntries"]["description"]
    assert "put" in document["paths"]["/docker-executor/blacklist/"]


def test_additional_dns_entries_are_found_by_the_job_and_shown(service: Service) -> None:
    job = {"image": "busybox", "command": "grep db.internal /etc/hosts"}
    entries = {"db.internal": "10.1.2.3", "cache": "10.1.2.4"}

    answer = service.submit("dns", {**job, "additionalDNSEntries": entries})

    assert service.finished(answer)["log"] == "10.1.2.3\tdb.internal\n"
    shown = service.get_json(answer["jobUrl"])["job"]["metadata"]["additional_dns_entries"]
    assert shown == [["db.internal", "10.1.2.3"], ["cache", "10.1.2.4"]]
    without = service.submit("dns", {**job, "additionalDNSEntries": {}})
    assert service.get_json(without["jobUrl"])["job"]["metadata"]["additional_dns_entries"] == []


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"additionalDNSEntries": {"db": "nowhere"}}, "additionalDNSEntries.db", "expected an IP address"),
        ({"docker": {"memory": "1g"}}, "docker.memory", "the farm small allows at most 67108864 bytes"),
        ({"docker": {"memroy": "1g"}}, "docker.memroy", "did you mean 'memory'"),
        ({"docker": {"networks": "host"}}, "docker.networks.0", "does not allow the network 'host'"),
        (
            {"docker": {"mounts": [{"type": "bind", "source": "/srv/../etc", "target": "/x"}]}},
            "docker.mounts.0.source",
            "without '.' and '..'",
        ),
        (
            {"docker": {"mounts": [{"type": "bind", "source": "/etc", "target": "/x"}]}},
            "docker.mounts.0.source",
            "the farm small does not allow to mount '/etc' of the host for writing; it allows /srv/*",
        ),
        ({"docker": {"mounts": [{"type": "tmpfs", "target": "x"}]}}, "docker.mounts.0.target", "absolute path"),
        ({"docker": {"mounts": [{"type": "tmpfs", "taget": "/x"}]}}, "docker.mounts.0.target", "missing"),
        ({"docker": {"labels": {"fastlane.job": "x"}}}, "docker.labels.fastlane.job", "Fastlane's own"),
    ],
    ids=str,
)
def test_what_is_not_permitted_is_refused_by_its_field(
    service: Service, fields: dict[str, Any], field: str, told: str
) -> None:
    status, answer = service.post("/tasks/refused", {"image": "busybox", "command": "true", **fields})

    assert (status, answer["field"]) == (400, field)
    assert told in answer["error"]
    assert service.get("/tasks/refused")[0] == 404
