"""What log lines look like, what they leave out, and which of them there are."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from fastlane_core.log import configure_logging

WORDS = ("password", "key", "secret", "client_id", "token")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, show = root.handlers[:], root.level, warnings.showwarning
    yield
    logging.captureWarnings(False)
    warnings.showwarning = show
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("fastlane_core", "fastlane_docker", "fastlane_k8s", "fastlane_notify", "fastlane_sentry"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configured(
    verbosity: int = 0, log_format: Literal["auto", "text", "json"] = "json", *, terminal: bool = False
) -> io.StringIO:
    stream = Terminal() if terminal else io.StringIO()
    configure_logging(verbosity=verbosity, log_format=log_format, secret_words=WORDS, stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_one_object_a_line_with_the_bound_ids() -> None:
    stream = configured()
    structlog.contextvars.bind_contextvars(task="t", job="j", execution="e")

    structlog.get_logger("fastlane_core.engine").info("started\nnow", place="host:1")
    logging.getLogger("hypercorn").warning("a %s thing", "slow")

    own, library = lines(stream)
    assert own.items() >= {"event": "started\nnow", "place": "host:1", "level": "info"}.items()
    assert library.items() >= {"event": "a slow thing", "logger": "hypercorn", "level": "warning"}.items()
    for line in (own, library):
        assert (line["task"], line["job"], line["execution"]) == ("t", "j", "e")
        assert str(line["timestamp"]).endswith("Z")


@pytest.mark.parametrize(
    ("log_format", "terminal", "is_json"),
    [("auto", False, True), ("auto", True, False), ("text", False, False), ("json", True, True)],
)
def test_lines_are_text_on_a_terminal_and_json_elsewhere_unless_the_settings_say_so(
    log_format: Literal["auto", "text", "json"], terminal: bool, is_json: bool
) -> None:
    stream = configured(0, log_format, terminal=terminal)

    structlog.get_logger("fastlane_core").info("hello", answer=42)

    assert stream.getvalue().startswith("{") == is_json
    assert "hello" in stream.getvalue()
    assert "42" in stream.getvalue()


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (0, ["own info", "library warning"]),
        (1, ["own info", "library info", "library warning"]),
        (2, ["own debug", "own info", "library info", "library warning"]),
        (3, ["own debug", "own info", "library debug", "library info", "library warning"]),
        (9, ["own debug", "own info", "library debug", "library info", "library warning"]),
    ],
)
def test_each_v_shows_more(verbosity: int, expected: list[str]) -> None:
    stream = configured(verbosity)
    own, library = structlog.get_logger("fastlane_docker.farm"), logging.getLogger("library.part")

    own.debug("own debug")
    own.info("own info")
    library.debug("library debug")
    library.info("library info")
    library.warning("library warning")

    assert [line["event"] for line in lines(stream)] == expected


def test_no_secret_gets_into_a_line() -> None:
    stream = configured()
    log = structlog.get_logger("fastlane_core")

    log.info("connected to redis://:hunter2@cache", envs={"API_KEY": "hunter3", "MONKEY": "banana"}, password="hunter4")
    log.warning("odd", hosts=["mongodb://a:hunter5@db"], error=RuntimeError("no http://a:hunter6@b"))
    logging.getLogger("library").error("got %s", "https://hunter7@x")

    assert "hunter" not in stream.getvalue()
    assert "banana" in stream.getvalue()


def test_tracebacks_are_there_without_the_values_of_variables() -> None:
    for log_format, terminal in (("json", False), ("text", True)):
        stream = configured(0, "json" if log_format == "json" else "text", terminal=terminal)

        def fail() -> None:
            hidden = "hunter" + str(2)
            raise RuntimeError(f"no redis://:{hidden}@cache")

        try:
            fail()
        except RuntimeError:
            structlog.get_logger("fastlane_core").exception("it failed")
            logging.getLogger("library").exception("it failed there")

        text = stream.getvalue()
        assert text.count("RuntimeError: no redis://:***@cache") == 2
        assert "Traceback" in text
        assert "hunter2" not in text


def test_text_from_outside_cannot_steer_the_terminal_or_forge_a_line() -> None:
    stream = configured(0, "text", terminal=True)

    structlog.get_logger("fastlane_core").info(
        "said\n2026 [error] forged", said="\x1b[2J\x07\r\u2028\u009b", lines="a\nb"
    )

    (line,) = stream.getvalue().splitlines()
    assert "\\x1b[2J\\x07\\r\\u2028\\x9b" in line
    assert "said\\n2026" in line


def test_warnings_of_python_are_lines_too() -> None:
    stream = configured()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)

    assert "old thing" in str(lines(stream)[0]["event"])


def test_setting_up_again_replaces_and_does_not_double() -> None:
    first = configured()
    second = configured()

    structlog.get_logger("fastlane_core").info("once")

    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_what_json_cannot_carry_is_written_as_text() -> None:
    stream = configured()

    structlog.get_logger("fastlane_core").info(
        "odd", value=object, data=b"\xff", nested={"set": {1}}, number=float("inf")
    )

    assert len(lines(stream)) == 1
