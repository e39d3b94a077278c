"""Credentials of registries: by settings, by Docker's configuration, by its helpers; and how they stay secret."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.errors import SettingsError
from fastlane_core.settings import Settings
from fastlane_core.settings.rendering import render
from fastlane_docker.images.registry_credentials import Credentials, credentials_for
from fastlane_docker.plugin import fastlane_settings
from fastlane_docker.settings import DockerSettings

SECRET = "s3cr3t-pa55"


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration file of this worker, not yet written."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program `docker-credential-test`, which a test is to write."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "docker-credential-test"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def shown(credentials: Credentials) -> dict[str, Any]:
    assert credentials.trouble == ""
    assert credentials.header is not None
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(credentials.header))
    return decoded


def registries(**values: object) -> DockerSettings:
    return DockerSettings.model_validate({"docker_registries": values.get("of", values)})


def logged_in(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_settings_come_first(configuration: Path) -> None:
    configuration.write_text(json.dumps({"auths": {"r:5000": logged_in("file", "x"), "other": logged_in("o", "p")}}))
    settings = registries(of={"r:5000": {"username": "alice", "password": SECRET}}).docker_registries

    assert shown(credentials_for("r:5000", settings)) == {
        "username": "alice",
        "password": SECRET,
        "serveraddress": "r:5000",
    }
    assert shown(credentials_for("other", settings))["username"] == "o"
    assert credentials_for("third", settings) == Credentials()


def test_identity_token_takes_the_place_of_a_password(configuration: Path) -> None:
    configuration.write_text(json.dumps({"auths": {"file": {"auth": "", "identitytoken": "kept"}}}))
    settings = registries(of={"r": {"identityToken": SECRET}}).docker_registries

    assert shown(credentials_for("r", settings)) == {"identitytoken": SECRET, "serveraddress": "r"}
    assert shown(credentials_for("file", settings)) == {"identitytoken": "kept", "serveraddress": "file"}


@pytest.mark.parametrize("name", ["docker.io", "https://index.docker.io/v1/", "index.docker.io"])
def test_docker_s_own_registry_has_several_names(configuration: Path, name: str) -> None:
    entry = {"username": "alice", "password": SECRET}
    by_settings = credentials_for("docker.io", registries(of={name: entry}).docker_registries)
    configuration.write_text(json.dumps({"auths": {name: logged_in("alice", SECRET)}}))

    assert shown(by_settings) == shown(credentials_for("docker.io", {}))
    assert shown(by_settings)["serveraddress"] == "https://index.docker.io/v1/"


def test_a_new_login_counts_at_once(configuration: Path) -> None:
    assert credentials_for("r", {}) == Credentials()
    for user in ("alice", "bob"):
        configuration.write_text(json.dumps({"auths": {"r": logged_in(user, SECRET)}}))
        assert shown(credentials_for("r", {}))["username"] == user


@pytest.mark.parametrize("where", [{"credsStore": "test"}, {"credHelpers": {"r": "test"}}])
def test_helper_is_asked(configuration: Path, helper: Path, where: dict[str, object]) -> None:
    configuration.write_text(json.dumps({"auths": {"r": {}}, **where}))
    write(helper, f"""read registry; echo '{{"ServerURL": "x", "Username": "'$registry'", "Secret": "{SECRET}"}}'""")

    assert shown(credentials_for("r", {})) == {"username": "r", "password": SECRET, "serveraddress": "r"}


def test_helper_may_keep_a_token(configuration: Path, helper: Path) -> None:
    configuration.write_text('{"credsStore": "test"}')
    write(helper, f"""echo '{{"Username": "<token>", "Secret": "{SECRET}"}}'""")

    assert shown(credentials_for("r", {})) == {"identitytoken": SECRET, "serveraddress": "r"}


def test_helper_that_keeps_nothing_leaves_it_to_the_file(configuration: Path, helper: Path) -> None:
    configuration.write_text(json.dumps({"credsStore": "test", "auths": {"r": logged_in("alice", SECRET)}}))
    write(helper, "echo credentials not found in native keychain; exit 1")

    assert shown(credentials_for("r", {}))["username"] == "alice"
    assert credentials_for("other", {}) == Credentials()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (f"echo {SECRET}; exit 3", "exit code 3"),
        (f"echo {SECRET}", "did not answer with"),
        (f"""echo '{{"Secret": "{SECRET}"}}'""", "did not answer with"),
        (None, "not installed"),
    ],
)
def test_helper_that_fails_is_named_and_nothing_of_it_is_told(
    configuration: Path, helper: Path, script: str | None, told: str
) -> None:
    configuration.write_text('{"credsStore": "test"}')
    if script is not None:
        write(helper, script)

    credentials = credentials_for("r", {})

    assert credentials.header is None
    assert "docker-credential-test" in credentials.trouble
    assert told in credentials.trouble
    assert SECRET not in credentials.trouble


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": ["r"]}',
        '{"auths": {"r": 5}}',
        '{"auths": {"r": {"auth": 5}}}',
        '{"auths": {"r": {"auth": "s3cr3t-pa55"}}}',
        '{"auths": {"r": {"auth": "bm8tY29sb24="}}}',
        '{"credHelpers": ["x"]}',
    ],
)
def test_configuration_that_cannot_be_used_is_named(configuration: Path, text: str) -> None:
    configuration.write_text(text)

    credentials = credentials_for("r", {})

    assert credentials.header is None
    assert str(configuration) in credentials.trouble
    assert SECRET not in credentials.trouble


@pytest.mark.parametrize("text", ["{}", '{"proxies": {"default": {}}}', '{"auths": {}}', '{"auths": {"r": {}}}'])
def test_configuration_without_credentials_is_no_trouble(configuration: Path, text: str) -> None:
    configuration.write_text(text)

    assert credentials_for("r", {}) == Credentials()


# Settings


@pytest.mark.parametrize("form", ["literal", "environment"])
def test_registries_from_file_and_environment(tmp_path: Path, form: str) -> None:
    text = json.dumps({"r:5000": {"username": "alice", "password": SECRET}})
    path = tmp_path / "fastlane.conf"
    path.write_text(f"DOCKER_REGISTRIES = {text}" if form == "literal" else "")
    environment = {"FASTLANE_DOCKER_REGISTRIES": text} if form == "environment" else {}

    section = Settings.load(fastlane_settings(), path=path, environment=environment).section(DockerSettings)

    assert shown(credentials_for("r:5000", section.docker_registries))["password"] == SECRET


@pytest.mark.parametrize(
    ("registries", "told"),
    [
        ({"a/b": {"username": "u", "password": SECRET}}, "a/b"),
        ({"r": {"username": "u"}}, "username and password"),
        ({"r": {"password": SECRET}}, "username and password"),
        ({"r": {}}, "identityToken"),
        ({"r": {"username": "u", "password": SECRET, "identityToken": SECRET}}, "identityToken"),
        ({"r": {"username": "u", "passwort": SECRET}}, "passwort"),
        ({"r": {"username": "u", "password": [SECRET]}}, "password"),
        ({"r": SECRET}, "r"),
        (SECRET, "DOCKER_REGISTRIES"),
        (
            {
                "docker.io": {"username": "u", "password": SECRET},
                "index.docker.io": {"username": "u", "password": SECRET},
            },
            "twice",
        ),
    ],
)
def test_bad_registries_are_refused_without_telling_secrets(tmp_path: Path, registries: object, told: str) -> None:
    path = tmp_path / "fastlane.conf"
    path.write_text(f"DOCKER_REGISTRIES = {json.dumps(registries)}")

    with pytest.raises(SettingsError) as caught:
        Settings.load(fastlane_settings(), path=path, environment={})

    assert "DOCKER_REGISTRIES" in str(caught.value)
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)


def test_secrets_are_in_no_text_of_the_settings() -> None:
    settings = registries(of={"r": {"username": "u", "password": SECRET}, "s": {"identityToken": SECRET}})

    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert SECRET not in text
    assert "DOCKER_REGISTRIES" in render(fastlane_settings())
    credentials = credentials_for("r", settings.docker_registries)
    assert str(credentials.header) not in repr(credentials)
