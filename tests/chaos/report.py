"""What happened in a storm, and what of it should not have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.deployment import MAX_RUNNING


@dataclass
class Report:
    """The counts of one storm."""

    seed: int
    #: How often each was done; all kinds are there.
    damages: Counter[str] = field(default_factory=Counter)
    #: How often each did not come about.
    in_vain: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    final: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    #: Attempts whose output may lack its end, as Fastlane says of them: their engine was dead when they ended.
    cut_short: int = 0
    #: Characters of output that were compared.
    characters: int = 0
    containers: int = 0
    #: Attempts that the engines know no container of: an engine died while it started it, and it was removed.
    without_container: int = 0
    most_running: int = 0
    looks: int = 0
    leased: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def undone(self) -> list[str]:
        """Kinds of damage that were never done."""
        return [name for name, count in self.damages.items() if not count]

    def __str__(self) -> str:
        attempts = self.attempts.total()
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.accepted.items())
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s",
            "damage done:",
            *_counted(self.damages),
            *_counted(Counter({f"{name}, in vain": count for name, count in self.in_vain.items()})),
            f"jobs accepted: {self.accepted.total()} ({kinds}), after {self.repeats} requests that had to be repeated",
            f"jobs final: {self.final}",
            f"attempts by how they ended ({attempts} in all):",
            *_counted(self.attempts),
            f"containers created: {self.containers} for {attempts} attempts, {self.without_container} of which have "
            "none left",
            f"most that ran at a time: {self.most_running} of {MAX_RUNNING}, in {self.looks} looks",
            f"characters of output compared: {self.characters}",
            f"attempts that ended while their engine was dead: {self.cut_short}",
            f"slots still taken: {self.leased}",
            f"problems: {len(self.problems)}",
            *(f"  {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def _counted(counts: Counter[str]) -> list[str]:
    return [f"  {count:4} {what}" for what, count in sorted(counts.items())]
