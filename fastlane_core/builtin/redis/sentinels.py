"""Finding the master by its sentinels, some of which may be down, hang, or know of an older one only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis, Sentinel
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What one sentinel tells of the master."""

    address: tuple[str, int]
    #: Counts the failovers; of two answers the one with more of them is newer.
    epoch: int
    #: Why it is of no use; "" if it is.
    trouble: str


class Sentinels(Sentinel):
    """Asks all at once, so that one which is down or hangs costs nothing while a majority answers.

    The answer with the newest configuration counts: one that was cut off from the others may still name a master that
    was replaced. Without a majority it is the newest of what was heard within the time.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], *, seconds: float, **options: Any) -> None:
        """`seconds` is the time that each has; `options` are those of the connections."""
        options = {**options, "socket_timeout": seconds, "socket_connect_timeout": seconds}
        super().__init__(hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._hosts = [f"{host}:{port}" for host, port in hosts]
        self._seconds = seconds
        self._asking: asyncio.Task[tuple[str, int]] | None = None
        #: Questions whose answers are not needed any more.
        self._left: set[asyncio.Task[Any]] = set()

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Where it is. Raises MasterNotFoundError. Who asks meanwhile shares the answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._find(service_name))
            # Whoever wanted to know may have been cancelled.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._asking)

    async def aclose(self) -> None:
        """Let go of all connections."""
        tasks = [*self._left, *([self._asking] if self._asking is not None else [])]
        for each in tasks:
            each.cancel()
        if tasks:
            # redis-py may drop a cancellation before Python 3.12; then they end by their time-outs.
            await asyncio.wait(tasks)
        await super().aclose()

    async def _find(self, name: str) -> tuple[str, int]:
        asked = {
            asyncio.create_task(_ask(each, name)): host for each, host in zip(self.sentinels, self._hosts, strict=True)
        }
        pending, answers = set(asked), list[_Answer]()
        told: dict[str, str] = {}
        deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            while pending and (found := self._decide(answers)) is None:
                left = max(0.0, deadline - asyncio.get_running_loop().time())
                done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for each in done:
                    answer = each.result()
                    if isinstance(answer, _Answer):
                        answers.append(answer)
                        told[asked[each]] = answer.trouble
                    else:
                        told[asked[each]] = answer
        finally:
            for each in pending:
                each.cancel()
                self._left.add(each)
                each.add_done_callback(self._left.discard)
        found = _newest(answers)
        if found is not None:
            return found.address
        told.update({asked[each]: f"did not answer within {self._seconds:g} s" for each in pending})
        reasons = "; ".join(f"{host} {told[host]}" for host in self._hosts if told.get(host))
        raise MasterNotFoundError(f"no sentinel names the master {name}: {reasons}")

    def _decide(self, answers: Sequence[_Answer]) -> _Answer | None:
        """What a majority of the sentinels has settled."""
        return _newest(answers) if len(answers) > len(self._hosts) // 2 else None


def _newest(answers: Sequence[_Answer]) -> _Answer | None:
    """A master of use by the newest configuration; an older one was replaced."""
    epoch = max((each.epoch for each in answers), default=0)
    return next((each for each in answers if each.epoch == epoch and not each.trouble), None)


async def _ask(sentinel: Redis, name: str) -> _Answer | str:
    """What it tells, or why it tells nothing."""
    try:
        masters = cast("dict[str, dict[str, Any]]", await sentinel.sentinel_masters())
    except (RedisError, OSError) as error:
        return f"does not answer: {str(error) or type(error).__name__}"
    state = masters.get(name)
    if state is None:
        return "does not know it"
    is_down = not state["is_master"] or state["is_sdown"] or state["is_odown"]
    trouble = "takes it for down" if is_down else ""
    return _Answer(address=(state["ip"], state["port"]), epoch=state["config-epoch"], trouble=trouble)
