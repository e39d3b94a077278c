"""Log lines: readable on a terminal, one JSON object a line elsewhere, always to stderr.

Standard output belongs to what commands print: results, settings, the output of a job.

Fastlane's own lines come from `structlog.get_logger(__name__)`; those of libraries, which use the standard `logging`,
and Python's warnings take the same way. Whatever is bound with `structlog.contextvars` (task, job, execution) is on
each line. Values under keys that name a secret, and passwords in URLs, are replaced before a line is written.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fastlane_core.redaction import redact, redact_url

#: Loggers below these names are Fastlane's own.
_OWN = ("fastlane_core", "fastlane_docker", "fastlane_k8s", "fastlane_notify", "fastlane_sentry")
#: Level of Fastlane's own lines, and of all others, by the number of `-v`.
_LEVELS = (
    (logging.INFO, logging.WARNING),
    (logging.INFO, logging.INFO),
    (logging.DEBUG, logging.INFO),
    (logging.DEBUG, logging.DEBUG),
)
#: What a terminal would obey: everything below space but the line end and tab, and the second control block.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_FINE = ("event", "level", "logger", "timestamp")


def configure_logging(
    *,
    verbosity: int = 0,
    log_format: Literal["auto", "text", "json"] = "auto",
    secret_words: Sequence[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process; may be called again to change it.

    `verbosity` counts `-v`: 0 shows what Fastlane does and warnings of libraries, 1 also what libraries do, 2 also
    Fastlane's debug lines, 3 everybody's; more is 3. `secret_words` name secrets among keys (see
    `fastlane_core.redaction`). `stream` is stderr unless another is given.
    """
    is_terminal = (stream or sys.stderr).isatty()
    as_text = log_format == "text" or (log_format == "auto" and is_terminal)
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream) if stream else _StandardError()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # A traceback as plain text: the richer ones show the values of variables, secrets among them.
                structlog.processors.format_exc_info,
                structlog.processors.UnicodeDecoder(),
                _Redaction(secret_words),
                *(_text(colors=is_terminal) if as_text else [structlog.processors.JSONRenderer(default=str)]),
            ],
        )
    )
    own, others = _LEVELS[min(max(verbosity, 0), len(_LEVELS) - 1)]
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(others)
    for name in _OWN:
        logging.getLogger(name).setLevel(own)
    logging.captureWarnings(True)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at the time, as the standard library's handler of last resort does."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Redaction:
    """The processor that lets no secret into a line."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)

    def __call__(self, logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        del logger, method
        # The words of a line are under "event", its origin under "logger": a configured word must not hide these.
        kept = {key: value for key, value in event_dict.items() if key in _FINE}
        others = {key: value for key, value in event_dict.items() if key not in _FINE}
        redacted = cast("dict[str, object]", redact(others, self._words))
        return {key: _without_passwords(value) for key, value in (kept | redacted).items()}


def _without_passwords(value: object) -> object:
    match value:
        case str():
            return redact_url(value)
        case list() | tuple():
            return [_without_passwords(each) for each in value]
        case dict():
            return {key: _without_passwords(each) for key, each in value.items()}
        case None | bool() | int() | float():
            return value
    # An error, a path, a URL object: what is written is its text.
    return redact_url(str(value))


def _text(*, colors: bool) -> list[Processor]:
    return [
        _harmless,
        structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        ),
    ]


def _harmless(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Nothing that came from outside may steer the terminal or pass for a line of its own."""
    del logger, method
    return {
        key: _escaped(value, keep_lines=key in ("exception", "stack")) if isinstance(value, str) else value
        for key, value in event_dict.items()
    }


def _escaped(text: str, *, keep_lines: bool) -> str:
    escaped = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return escaped if keep_lines else escaped.replace("\n", "\\n")
