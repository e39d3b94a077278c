"""Settings from all sources together: what wins, what is refused, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, field_validator

from fastlane_core.errors import PluginError, SettingsError
from fastlane_core.hookspecs import SettingsSection, SettingsSource
from fastlane_core.settings import (
    CORE_SECTIONS,
    ApiSettings,
    GeneralSettings,
    Settings,
    WorkerSettings,
    read_general,
)


class Farm(BaseModel):
    match: str = ""
    max_running: int = Field(default=10, ge=1)


class ExampleSettings(BaseModel):
    example_farms: list[Farm] = Field(default=[], description="Farms.")
    example_password: SecretStr = Field(default=SecretStr(""), description="A secret.")
    example_pin: int = Field(default=0, description="A number.")
    example_mode: Literal["fast", "safe"] = Field(default="safe", description="A choice.")
    example_labels: dict[str, str] = Field(default={}, description="A table.")
    example_sizes: tuple[int, ...] = Field(default=(), description="Numbers.")
    example_folder: Path = Field(default=Path("data"), description="A folder.")


EXAMPLE = SettingsSection(title="Example", model=ExampleSettings, bare_environment=frozenset({"EXAMPLE_FARMS"}))


def load(
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    path = None
    if text is not None:
        assert folder is not None
        path = folder / "fastlane.conf"
        path.write_text(text)
    return Settings.load([*CORE_SECTIONS, EXAMPLE], path=path, environment=environment or {}, overrides=overrides or {})


def refused(
    text: str | None = None, environment: Mapping[str, str] | None = None, *, folder: Path | None = None
) -> str:
    with pytest.raises(SettingsError) as raised:
        load(text, environment, folder=folder)
    return str(raised.value)


def test_without_sources_every_key_has_its_default() -> None:
    settings = load()

    for section in CORE_SECTIONS:
        assert settings.section(section.model) == section.model()
    assert settings.origin("DEBUG") == "default"


def test_command_line_beats_prefixed_beats_bare_environment_beats_file(tmp_path: Path) -> None:
    text = "PAGINATION_PER_PAGE = 1\n"
    bare = {"PAGINATION_PER_PAGE": "2"}
    prefixed = {"FASTLANE_PAGINATION_PER_PAGE": "3", **bare}

    seen = [
        load(text, folder=tmp_path),
        load(text, bare, folder=tmp_path),
        load(text, prefixed, folder=tmp_path),
        load(text, prefixed, folder=tmp_path, overrides={"PAGINATION_PER_PAGE": 4}),
    ]

    assert [each.section(ApiSettings).pagination_per_page for each in seen] == [1, 2, 3, 4]
    assert [each.origin("PAGINATION_PER_PAGE") for each in seen] == [
        f"{tmp_path}/fastlane.conf:1",
        "environment variable PAGINATION_PER_PAGE",
        "environment variable FASTLANE_PAGINATION_PER_PAGE",
        "command line",
    ]


def test_settings_are_what_plugins_see_and_typed_by_the_model() -> None:
    settings: SettingsSource = load(None, {"FASTLANE_EXAMPLE_SIZES": "[1, 2]", "FASTLANE_EXAMPLE_FOLDER": "/data"})

    values = settings.section(ExampleSettings)
    assert values.example_sizes == (1, 2)
    assert values.example_folder == Path("/data")


def test_a_section_that_nobody_declared_is_an_error_that_names_it() -> None:
    with pytest.raises(SettingsError, match="Farm"):
        load().section(Farm)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("WORKER_CONCURENCY = 3", "WORKER_CONCURENCY: no such setting; did you mean WORKER_CONCURRENCY?"),
        ("debug = True", "did you mean DEBUG?"),
        ("XYZZY = 3", "`fastlane config` prints all there are"),
        ("DEBUG = 1", "DEBUG: expected True or False; got 1"),
        ('DEBUG = "false"', "DEBUG: expected True or False; got text"),
        ('WORKER_CONCURRENCY = "64"', "WORKER_CONCURRENCY: expected a whole number; got text"),
        ("WORKER_CONCURRENCY = True", "expected a whole number; got True"),
        ("WORKER_CONCURRENCY = 1.5", "expected a whole number; got 1.5"),
        ("LEASE_SECONDS = 0.5", "LEASE_SECONDS: expected a number greater than or equal to 1; got 0.5"),
        ("STORAGE = None", "STORAGE: expected text; got None"),
        ("STORAGE = ['sqlite']", "STORAGE: expected text; got a list"),
        ("EXAMPLE_MODE = 'quick'", "EXAMPLE_MODE: expected 'fast' or 'safe'; got text"),
        ("EXAMPLE_LABELS = [1]", "EXAMPLE_LABELS: expected a table; got a list"),
        ("EXAMPLE_FARMS = [{'match': 3}]", "EXAMPLE_FARMS[0].match: expected text; got 3"),
        ("EXAMPLE_FARMS = [{}, {'max_running': 0}]", "EXAMPLE_FARMS[1].max_running: expected a number greater"),
        ("EXAMPLE_FARMS = '[{]'", "EXAMPLE_FARMS: expected a list; got text that is not JSON at its line 1, column 3"),
        ('CORS_ORIGINS = ["https://a.example/x"]', "'https://a.example/x' is no origin"),
        ('CORS_ORIGINS = "localhost:3000"', "'localhost:3000' is no origin"),
        ('CORS_ORIGINS = "https://a.example, null"', "'null' is no origin"),
        ("CORS_ORIGINS = '[\"a\", b]'", "CORS_ORIGINS: expected a list; got text that is not JSON"),
        ("SERVER_NAME = 'http://x/'", "SERVER_NAME: expected text that matches pattern"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place_and_what_was_expected(text: str, told: str, tmp_path: Path) -> None:
    message = refused(f"# first\n{text}\n", folder=tmp_path)

    assert f"{tmp_path}/fastlane.conf:2: " in message
    assert told in message


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    message = refused(
        "DEBUG = 3\nSTORAGE = open('x')\nFOO = 1\nLEASE_SECONDS = 0\nMAX_LOG_BYTES = 'x'\n",
        {"FASTLANE_BAR": "1", "FASTLANE_QUEUE_": "x"},
        folder=tmp_path,
    )

    for key in ("DEBUG", "STORAGE", "FOO", "LEASE_SECONDS", "MAX_LOG_BYTES", "FASTLANE_BAR", "FASTLANE_QUEUE_"):
        assert f"{key}: " in message
    assert len(message.splitlines()) == 8


def test_values_that_do_not_fit_together_are_refused() -> None:
    backoff = {"FASTLANE_EXPONENTIAL_BACKOFF_MIN_MS": "5000", "FASTLANE_EXPONENTIAL_BACKOFF_MAX_MS": "10"}
    plugins = {"FASTLANE_BLOCKED_PLUGINS": "a,b", "FASTLANE_REQUIRED_PLUGINS": "b"}

    assert "EXPONENTIAL_BACKOFF_MAX_MS is smaller than EXPONENTIAL_BACKOFF_MIN_MS" in refused(None, backoff)
    assert "BLOCKED_PLUGINS and REQUIRED_PLUGINS both name b" in refused(None, plugins)


def test_no_message_tells_the_value_of_a_secret(tmp_path: Path) -> None:
    message = refused(
        "EXAMPLE_PASSWORD = ['hunter2']\nEXAMPLE_PIN = 'hunter3'\nEXAMPLE_LABELS = {'api_key': 4711}\n",
        {"FASTLANE_EXAMPLE_MODE": "hunter4", "FASTLANE_HUNTER": "hunter5"},
        folder=tmp_path,
    )

    for value in ("hunter2", "hunter3", "hunter4", "hunter5", "4711"):
        assert value not in message


class Picky(BaseModel):
    """A section whose own check refuses everything, repeating it."""

    picky_password: str = Field(default="", description="A secret.")
    picky_url: str = Field(default="", description="A URL.")

    @field_validator("*")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError(f"cannot use {value}")


def refused_by_its_own_check(key: str, value: str) -> str:
    section = SettingsSection(title="Picky", model=Picky)
    with pytest.raises(SettingsError) as raised:
        Settings.load([section], path=None, environment={f"FASTLANE_{key}": value})
    return str(raised.value)


def test_what_a_plugins_own_check_says_of_a_secret_is_not_told() -> None:
    message = refused_by_its_own_check("PICKY_PASSWORD", "hunter2")

    assert "PICKY_PASSWORD: the value is not accepted; got text" in message
    assert "hunter2" not in message


def test_what_a_plugins_own_check_says_hides_passwords_of_urls() -> None:
    message = refused_by_its_own_check("PICKY_URL", "http://a:hunter2@b")

    assert "cannot use http://a:***@b" in message
    assert "PICKY_URL" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("SMTP_HOST", "fastlane-notify"),
        ("SMTP_PASSWORD", "fastlane-notify"),
        ("SENTRY_DSN", "fastlane-sentry"),
        ("ERROR_HANDLERS", "fastlane-sentry"),
        ("DOCKER_HOSTS", "fastlane-docker"),
        ("EXECUTOR", "RUNNERS"),
        ("ENABLE_CORS", "CORS_ORIGINS"),
        ("SECRET_KEY", "remove"),
        ("ENV", "remove"),
        ("BASIC_AUTH_USERNAME", "proxy"),
    ],
)
def test_keys_of_the_first_fastlane_are_refused_with_what_to_do_instead(key: str, told: str, tmp_path: Path) -> None:
    in_file = refused(f'{key} = "x"', folder=tmp_path)
    in_environment = refused(None, {f"FASTLANE_{key}": "x"})

    for message in (in_file, in_environment):
        assert f"{key}: " in message
        assert told in message


def test_a_key_of_the_first_fastlane_belongs_to_the_plugin_that_owns_it() -> None:
    class Docker(BaseModel):
        docker_hosts: list[Farm] = Field(default=[], description="Farms.")

    section = SettingsSection(title="Docker", model=Docker, bare_environment=frozenset({"DOCKER_HOSTS"}))
    settings = Settings.load([section], path=None, environment={"DOCKER_HOSTS": '[{"match": "x"}]'})

    assert settings.section(Docker).docker_hosts == [Farm(match="x")]
    assert settings.notices == ()


def test_bare_variables_of_absent_plugins_are_noticed_but_not_refused() -> None:
    settings = load(None, {"SENTRY_DSN": "https://hunter2@x", "ENV": "prod", "SMTP_HOST": ""})

    assert len(settings.notices) == 1
    assert "SENTRY_DSN" in settings.notices[0]
    assert "hunter2" not in settings.notices[0]


def test_asking_for_a_password_that_nobody_would_check_is_refused_even_as_a_bare_variable() -> None:
    assert "BASIC_AUTH_PASSWORD" in refused(None, {"BASIC_AUTH_PASSWORD": "hunter2"})


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        Settings.load(CORE_SECTIONS, path=tmp_path / "absent.conf", environment={})


def test_the_general_settings_are_read_before_the_sections_of_plugins_are_known(tmp_path: Path) -> None:
    path = tmp_path / "fastlane.conf"
    path.write_text("BLOCKED_PLUGINS = ['docker']\nDOCKER_HOSTS = []\nDEBUG = 'wrong'\n")

    general = read_general(path=path, environment={"FASTLANE_QUEUE": "redis"})

    assert general == GeneralSettings(blocked_plugins=["docker"], queue="redis")


def test_sections_that_cannot_be_settings_are_refused() -> None:
    class Required(BaseModel):
        required_one: int = Field(description="No default.")

    class Undescribed(BaseModel):
        undescribed: int = 0

    class Again(BaseModel):
        lease_seconds: int = Field(default=0, description="Core has it.")

    for model, told in ((Required, "REQUIRED_ONE no default"), (Undescribed, "no description"), (Again, "twice")):
        with pytest.raises(PluginError, match=told):
            Settings.load([*CORE_SECTIONS, SettingsSection(title="T", model=model)], path=None, environment={})
    with pytest.raises(PluginError, match="NO_SUCH"):
        Settings.load([replace(EXAMPLE, bare_environment=frozenset({"NO_SUCH"}))], path=None, environment={})


def test_durations_and_sizes_have_bounds() -> None:
    for key, value in (
        ("HARD_EXECUTION_TIMEOUT_SECONDS", "0"),
        ("HARD_EXECUTION_TIMEOUT_SECONDS", "inf"),
        ("LEASE_SECONDS", "nan"),
        ("WORKER_CONCURRENCY", "0"),
        ("WORKER_SLEEP_TIME_MS", "-1"),
        ("MAX_LOG_BYTES", "-5"),
        ("EXPONENTIAL_BACKOFF_FACTOR", "0.5"),
        ("PAGINATION_PER_PAGE", "0"),
        ("WS_PING_SECONDS", "0"),
    ):
        assert f"{key}: expected" in refused(None, {f"FASTLANE_{key}": value})
    assert load(None, {"FASTLANE_LEASE_SECONDS": "2"}).section(WorkerSettings).lease_seconds == 2


@pytest.mark.parametrize(
    "origin", ["*", "https://ci.example.com", "http://[::1]:8080", "https://a.example/", "moz-extension://0e2f4d1c"]
)
def test_origins_are_taken_as_browsers_send_them(origin: str) -> None:
    assert ApiSettings(cors_origins=[origin]).cors_origins == [origin]
