"""Every error that Fastlane raises on purpose.

    FastlaneError
    ├── InvalidInput              a request is refused; names the field
    ├── NotFound                  a task, job or execution that does not exist
    ├── Conflict                  the request does not fit the state that the record is in
    │   └── PreconditionFailed    the caller asked for it only if the record were in another state
    ├── SettingsError             settings that cannot be used; names the key
    ├── PluginError               a plugin that cannot be loaded or used; names its origin
    ├── StorageError
    │   ├── StorageUnavailable    out of reach or timed out; the same call may succeed later
    │   ├── SchemaTooNew          written by a newer Fastlane
    │   ├── SchemaNotReady        nothing there yet, or older, and whoever asks may change nothing
    │   ├── RevisionConflict      somebody else changed the record first
    │   └── LogConflict           somebody else wrote that stretch of the log first
    ├── QueueError
    │   ├── QueueUnavailable      out of reach or timed out; the same call may succeed later
    │   └── LeaseLost             the lease is held by somebody else now
    └── RunnerError
        ├── EngineUnavailable     the engine could not be reached; never the job's fault
        ├── ImageNotFound         the image does not exist, or may not be pulled
        ├── PullFailed            the image could not be pulled this time
        ├── StartRejected         the engine refused to create or start the run
        ├── StartLost             the engine died while it started the run, and can neither go on nor tell
        ├── RunNotFound           the engine knows no run by that handle
        └── Unsupported           the runner lacks this optional ability

Messages are sentences for people: what failed, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class FastlaneError(Exception):
    """Base of every error that Fastlane raises on purpose."""


class InvalidInput(FastlaneError):
    """A request is refused before anything is stored."""

    def __init__(self, field: str, message: str, *, problems: Sequence[tuple[str, str]] = ()) -> None:
        """`field` is the dotted path of the offending value (`docker.memory`), or "" for the whole body.

        `problems` has everything that was found, in the same form, where that may be more than one.
        """
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message
        self.problems = problems


class NotFound(FastlaneError):
    """There is no task, job or execution by that name."""


class Conflict(FastlaneError):
    """The request does not fit the state that the record is in."""


class PreconditionFailed(Conflict):
    """The caller wanted it done only in a state that the record is not in."""


class SettingsError(FastlaneError):
    """The settings cannot be used; the message names the key, its source and what was expected."""


class PluginError(FastlaneError):
    """A plugin cannot be loaded or used; the message names the plugin and where it came from."""


class StorageError(FastlaneError):
    """Base of what a storage raises."""


class StorageUnavailable(StorageError):
    """The storage is out of reach or did not answer in time; the same call may succeed later."""


class SchemaTooNew(StorageError):
    """The stored data was written by a newer Fastlane than this one."""


class SchemaNotReady(StorageError):
    """Nothing is stored yet, or for an older Fastlane only, and it was opened by somebody who changes nothing."""


class RevisionConflict(StorageError):
    """The record's revision is not the one that the writer had read: read it again and decide anew."""


class LogConflict(StorageError):
    """The log already holds other chunks where the writer wanted to append.

    `next_sequence` is the sequence that an append must start with now.
    """

    def __init__(self, execution_id: str, next_sequence: int) -> None:
        super().__init__(f"the log of execution {execution_id} continues at chunk {next_sequence}")
        self.next_sequence = next_sequence


class QueueError(FastlaneError):
    """Base of what a queue raises."""


class QueueUnavailable(QueueError):
    """The queue is out of reach or did not answer in time; the same call may succeed later."""


class LeaseLost(QueueError):
    """The lease ran out and was claimed by another worker, or the item was removed."""


class RunnerError(FastlaneError):
    """Base of what a runner raises; the subclass alone decides what core does."""


class EngineUnavailable(RunnerError):
    """The engine could not be reached or did not answer in time. Retried without using up an attempt.

    An engine that stays out of reach for `ENGINE_LOST_AFTER_SECONDS` is given up as lost. That is counted from the
    first of those failures that no answer came between. Only the runner knows what a call met before it failed.
    """

    def __init__(self, message: str = "", *, had_answered: bool | None = None) -> None:
        """`had_answered` tells whether the engine had answered the very call that failed.

        True of a `wait` that was told that the run goes on, hours before the trouble came; False of one that met
        nothing but silence. None says nothing: then only a call that took longer than the time after which engines are
        lost counts as answered.
        """
        super().__init__(message)
        self.had_answered = had_answered


class ImageNotFound(RunnerError):
    """The image does not exist or may not be pulled. The execution fails with `image_not_found`."""


class PullFailed(RunnerError):
    """The image could not be pulled this time: its registry is in trouble. The execution fails with `pull_failed`."""


class StartRejected(RunnerError):
    """The engine refused to create or start the run. The execution fails with `start_rejected`."""


class StartLost(RunnerError):
    """The engine died while it started the run and cannot go on with it now that it is back.

    Whether the command ran is unknown. The execution fails with `engine_lost`, and is tried again.
    """


class RunNotFound(RunnerError):
    """The engine answers, but knows no run by that handle. The execution fails with `run_lost`."""


class Unsupported(RunnerError):
    """The runner lacks this optional ability; its capability flag says so beforehand."""
