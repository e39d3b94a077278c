"""What environment variables mean."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

from fastlane_core.errors import SettingsError
from fastlane_core.models import Json
from fastlane_core.settings import CORE_SECTIONS, ApiSettings, GeneralSettings, Settings
from fastlane_core.settings.environment import read_environment
from fastlane_core.settings.values import from_text


class Colour(Enum):
    RED = "red"


class Nested(BaseModel):
    x: int = 0


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("false", bool, False),
        ("False", bool, False),
        ("0", bool, False),
        ("off", bool, False),
        ("TRUE", bool, True),
        ("yes", bool, True),
        ("maybe", bool, "maybe"),
        ("10", int, 10),
        (" 10 ", int, 10),
        ("-3", int, -3),
        ("1.5", int, "1.5"),
        ("1.5", float, 1.5),
        ("10", float, 10.0),
        ("nan", float, "nan"),
        ("1e999", float, "1e999"),
        ("", int, ""),
        ("10", str, "10"),
        ("[1]", str, "[1]"),
        ("null", str, "null"),
        ("", str, ""),
        ("", str | None, None),
        ("null", str | None, "null"),
        ("", int | None, None),
        ("null", int | None, None),
        ("7", int | None, 7),
        ("7", Annotated[int | None, Field(ge=1)], 7),
        ("7", int | str, "7"),
        ("1", bool | int, 1),
        ("true", bool | int, True),
        ("red", Colour, "red"),
        ("a", Literal["a", "b"], "a"),
        ("3", Literal[1, 3], 3),
        ("x", SecretStr, "x"),
        ("x", Path, "x"),
        ('["a", "b"]', list[str], ["a", "b"]),
        ("['a', 'b']", list[str], ["a", "b"]),
        ('{"x": true}', dict[str, bool], {"x": True}),
        ('{"x": 1}', Nested, {"x": 1}),
        ('\n [{"x": 1}]\n', list[Nested], [{"x": 1}]),
        ("[1, 2]", tuple[int, ...], [1, 2]),
        ('["a"]', str | list[str], ["a"]),
        ("a", str | list[str], "a"),
        ('{"a": [1]}', Json, {"a": [1]}),
        ("[", list[str], "["),
        ("a,b", list[str], "a,b"),
        ("10", list[int], "10"),
        ('{"a": NaN}', dict[str, float], '{"a": NaN}'),
        ('{"a": 1, "a": 2}', dict[str, int], '{"a": 1, "a": 2}'),
        ("[print()]", list[str], "[print()]"),
        ("[" * 100_000, list[str], "[" * 100_000),
    ],
)
def test_a_text_means_what_the_keys_type_makes_of_it(text: str, annotation: object, value: object) -> None:
    meant = from_text(text, annotation)

    assert meant == value
    assert type(meant) is type(value)


def test_debug_false_is_false() -> None:
    settings = Settings.load(CORE_SECTIONS, path=None, environment={"DEBUG": "false"})

    assert settings.section(GeneralSettings).debug is False


def test_lists_may_be_written_with_commas() -> None:
    settings = Settings.load(
        CORE_SECTIONS,
        path=None,
        environment={"ENV_BLACKLISTED_WORDS": "pin, code,", "FASTLANE_RUNNERS": "process", "CORS_ORIGINS": "*"},
    )

    assert settings.section(GeneralSettings).env_blacklisted_words == ["pin", "code"]
    assert settings.section(GeneralSettings).runners == ["process"]
    assert settings.section(ApiSettings).cors_origins == ["*"]


def test_no_blacklisted_words_is_an_empty_list() -> None:
    settings = Settings.load(CORE_SECTIONS, path=None, environment={"FASTLANE_ENV_BLACKLISTED_WORDS": ""})

    assert settings.section(GeneralSettings).env_blacklisted_words == []


def test_only_listed_keys_are_read_without_the_prefix() -> None:
    settings = Settings.load(
        CORE_SECTIONS, path=None, environment={"STORAGE": "other", "PAGINATION_PER_PAGE": "7", "PATH": "/bin"}
    )

    assert settings.section(GeneralSettings).storage == "sqlite"
    assert settings.section(ApiSettings).pagination_per_page == 7


def test_an_empty_bare_variable_counts_as_not_set() -> None:
    settings = Settings.load(CORE_SECTIONS, path=None, environment={"DEBUG": "", "PAGINATION_PER_PAGE": ""})

    assert settings.origin("DEBUG") == "default"


def test_variables_that_are_no_settings_are_passed_over() -> None:
    environment = {"FASTLANE_URL": "http://x", "FASTLANE_CONFIG": "/etc/fastlane.conf"}

    assert read_environment(environment, ()) == []


def test_what_kubernetes_adds_for_a_service_named_fastlane_is_passed_over() -> None:
    links = {
        "FASTLANE_SERVICE_HOST": "10.0.0.1",
        "FASTLANE_SERVICE_PORT": "80",
        "FASTLANE_SERVICE_PORT_HTTP": "80",
        "FASTLANE_PORT": "tcp://10.0.0.1:80",
        "FASTLANE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "FASTLANE_PORT_80_TCP_ADDR": "10.0.0.1",
        "FASTLANE_API_SERVICE_HOST": "10.0.0.2",
        "FASTLANE_API_PORT_80_TCP_PROTO": "tcp",
    }

    assert read_environment(links, ()) == []
    assert [each.key for each in read_environment({**links, "FASTLANE_DEBUG": "1"}, ())] == ["DEBUG"]
    assert [each.key for each in read_environment({"FASTLANE_PORT": "80"}, ())] == ["PORT"]


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SettingsError, match="STORAGE"):
        Settings.load(CORE_SECTIONS, path=None, environment={"FASTLANE_STORAGE": "\udcff"})
