"""What is redacted, and what is not."""

from __future__ import annotations

import time

import pytest

from fastlane_core.redaction import REDACTED, is_secret, redact, redact_url

WORDS = ("password", "key", "secret", "client_id", "token")


@pytest.mark.parametrize(
    "key",
    [
        "API_KEY",
        "apiKey",
        "api-key",
        "ApiKeys",
        "fooKey",
        "HTTPKey",
        "APIKEY",
        "sshkey",
        "KEY",
        "KEY2",
        "key",
        "SECRET_TOKEN",
        "clientSecret",
        "client_id",
        "clientId",
        "CLIENTID",
        "google_client_ids",
        "DB_PASSWORD",
        "PGPASSWORD",
        "PASS_WORD",
        "passwords",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "x.api.key",
        "пароль_key",
    ],
)
def test_names_of_secrets_are_found(key: str) -> None:
    assert is_secret(key, WORDS)


@pytest.mark.parametrize(
    "key",
    [
        "MONKEY",
        "keyboard",
        "KEYBOARD_LAYOUT",
        "turkey",
        "monkeys",
        "HOCKEY_TEAM",
        "client",
        "ID",
        "CLIENT_NAME",
        "",
        "42",
        "PATH",
    ],
)
def test_innocent_names_are_left_alone(key: str) -> None:
    assert not is_secret(key, WORDS)


def test_the_operators_own_words_are_taken_without_case() -> None:
    assert is_secret("LICENCE_NUMBER", ["Licence Number"])
    assert is_secret("pin", ["PIN"])
    assert not is_secret("PINE", ["PIN"])
    assert not is_secret("API_KEY", ["pin"])


def test_secrets_are_replaced_at_any_depth_and_the_original_is_kept() -> None:
    value = {
        "envs": {"API_KEY": "abc", "MONKEY": "banana"},
        "list": [{"password": ["a", "b"]}, "text", 3, None, True],
        "secret": {"nested": {"innocent": 1}},
        "token": None,
    }

    assert redact(value, WORDS) == {
        "envs": {"API_KEY": "***", "MONKEY": "banana"},
        "list": [{"password": "***"}, "text", 3, None, True],
        "secret": "***",
        "token": "***",
    }
    assert value["envs"] == {"API_KEY": "abc", "MONKEY": "banana"}


@pytest.mark.parametrize("words", [(), ("",), (" ",), ("__",)])
def test_no_words_redact_nothing(words: tuple[str, ...]) -> None:
    assert redact({"API_KEY": "abc"}, words) == {"API_KEY": "abc"}


def test_what_is_nested_too_deeply_is_hidden_instead_of_shown() -> None:
    value: object = {"password": "abc"}
    for _ in range(500):
        value = [value]

    assert "abc" not in repr(redact(value, WORDS))
    assert REDACTED in repr(redact(value, WORDS))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://:hunter2@cache:6379/0", "redis://:***@cache:6379/0"),
        ("mongodb://app:hunter2@db1,db2/x?w=1", "mongodb://app:***@db1,db2/x?w=1"),
        ("cannot reach amqp://a:b@h, nor http://c:d@e/f.", "cannot reach amqp://a:***@h, nor http://c:***@e/f."),
        ("redis://u:p@ss@host", "redis://u:***@host"),
        ("https://ghp_abc@git.example.com/x", "https://***@git.example.com/x"),
        ("ssh://git@example.com/x", "ssh://git@example.com/x"),
        ("http://localhost:10000/tasks/a@b", "http://localhost:10000/tasks/a@b"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("mail me@example.com", "mail me@example.com"),
        ("", ""),
    ],
)
def test_passwords_in_urls_are_hidden(text: str, expected: str) -> None:
    assert redact_url(text) == expected


def test_a_long_text_costs_time_in_proportion_to_its_length() -> None:
    def seconds(length: int) -> float:
        started = time.perf_counter()
        redact_url("http://" + "a" * length + "://:" * 10)
        redact_url("://:a" * (length // 5))
        return time.perf_counter() - started

    short, long = (min(seconds(length) for _ in range(3)) for length in (50_000, 500_000))

    assert long < max(short, 0.002) * 60
