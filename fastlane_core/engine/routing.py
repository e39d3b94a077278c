"""Which lane, and so which runner, a task's jobs go to, and how many may run. Pure: it asks no engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fastlane_core.contracts.runner import Lane, Runner
from fastlane_core.errors import InvalidInput, SettingsError
from fastlane_core.models import Execution

#: Tasks whose lane is not looked for again: every farm's pattern would be tried, for each of thousands of jobs.
_REMEMBERED = 1_024


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLimit:
    """How many executions of each task whose id begins with a match of `pattern` may hold a slot at a time."""

    pattern: re.Pattern[str]
    capacity: int


class Routing:
    """All lanes of the enabled runners; the first runner that takes a task gets it."""

    def __init__(self, runners: Sequence[Runner], task_limits: Sequence[TaskLimit] = ()) -> None:
        self.runners = tuple(runners)
        self._task_limits = tuple(task_limits)
        self._lane_for = lru_cache(maxsize=_REMEMBERED)(self._find_lane)
        self._lanes: dict[str, tuple[Lane, Runner]] = {}
        for runner in self.runners:
            for lane in runner.lanes():
                if lane.name in self._lanes:
                    raise SettingsError(f"two runners offer a lane named {lane.name}")
                self._lanes[lane.name] = (lane, runner)

    def lanes(self) -> Sequence[Lane]:
        """Every lane, in order of precedence."""
        return [lane for lane, _ in self._lanes.values()]

    def lane(self, name: str) -> Lane | None:
        """The lane by that name, or None where no enabled runner offers it (any more)."""
        found = self._lanes.get(name)
        return found[0] if found else None

    def lanes_matching(self, patterns: Sequence[str]) -> frozenset[str]:
        """Names of the lanes that are named, or whose beginning is given as `docker:gpu*`.

        Raises SettingsError for a pattern that matches none.
        """
        found: set[str] = set()
        for pattern in patterns:
            if pattern.endswith("*"):
                matching = {name for name in self._lanes if name.startswith(pattern[:-1])}
            else:
                matching = {pattern} & set(self._lanes)
            if not matching:
                raise SettingsError(f"there is no lane {pattern!r}; there are: {', '.join(self._lanes) or 'none'}")
            found |= matching
        return frozenset(found)

    def runner_of(self, lane: str) -> Runner:
        """The runner that offers the lane; KeyError if none does."""
        return self._lanes[lane][1]

    def runner_for(self, execution: Execution) -> Runner:
        """The runner that has, or is to have, the execution's run, also if its lane is not offered any more.

        Raises SettingsError if that runner is not enabled in this process.
        """
        name = execution.handle.runner if execution.handle else execution.lane.partition(":")[0]
        for runner in self.runners:
            if runner.name == name:
                return runner
        raise SettingsError(
            f"execution {execution.id} belongs to the runner {name}, which is not enabled here; "
            f"enabled: {', '.join(each.name for each in self.runners) or 'none'}"
        )

    def task_limit(self, task_id: str) -> int | None:
        """The strictest of the limits that hold for the task; None for no limit."""
        matching = (each.capacity for each in self._task_limits if each.pattern.match(task_id))
        return min(matching, default=None)

    def lane_for(self, task_id: str) -> Lane:
        """The lane that the task's jobs wait in. Raises InvalidInput where no lane takes them."""
        return self._lane_for(task_id)

    def _find_lane(self, task_id: str) -> Lane:
        for runner in self.runners:
            name = runner.lane_for(task_id)
            if name is not None:
                return self._lanes[name][0]
        help_text = " ".join(filter(None, (runner.routing_help() for runner in self.runners)))
        raise InvalidInput("taskId", f"no lane takes the task {task_id!r}. {help_text}".strip())
