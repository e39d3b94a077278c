"""Telling waiters that something changed, by Redis's publish/subscribe: one connection for the whole process.

A message that is lost costs waiting only. While there is no connection nobody is woken; when it is back everybody is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog
from redis.exceptions import RedisClusterException, RedisError

from fastlane_core.builtin.redis.servers import Servers, end_task
from fastlane_core.contracts.queue import Subscription
from fastlane_core.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio.client import PubSub

log = structlog.get_logger(__name__)

#: Seconds of silence after which the server is asked for a sign of life, and within which it has to give one.
_SILENCE_SECONDS: Final = 5.0
#: Seconds between attempts to connect.
_RECONNECT_SECONDS: Final = 0.25
#: Seconds that a new listener waits until the server has confirmed it.
_CONFIRM_SECONDS: Final = 2.0
#: Topics that wait to be published; more are dropped.
_UNSENT: Final = 10_000


class Listener:
    """Wants messages of some channels."""

    def __init__(self, channels: Iterable[str]) -> None:
        self.channels = frozenset(channels)
        #: Whether it counts on hearing everything: what may be lost is delivered to it without being sent.
        self.counts_on_it = False
        self._unread: dict[str, None] = {}
        self._arrived = asyncio.Event()

    def deliver(self, channels: Iterable[str]) -> None:
        """Messages of one channel that were not read yet are folded into one."""
        self._unread.update(dict.fromkeys(channels))
        self._arrived.set()

    async def next(self) -> str:
        """The channel of the next message."""
        while not self._unread:
            self._arrived.clear()
            await self._arrived.wait()
        channel = next(iter(self._unread))
        del self._unread[channel]
        return channel


class TopicSubscription(Subscription):
    """Topics listened to."""

    def __init__(self, listener: Listener, topics: dict[str, str]) -> None:
        self._listener = listener
        #: By channel.
        self._topics = topics

    async def next(self, timeout: float) -> str | None:
        try:
            async with asyncio.timeout(timeout):
                return self._topics[await self._listener.next()]
        except TimeoutError:
            return None


class Wakeups:
    """The listeners of this process, and the tasks that serve them."""

    def __init__(self, servers: Servers, channel_of: Callable[[str], str]) -> None:
        """`channel_of` gives the channel of a topic."""
        self._servers = servers
        self._channel_of = channel_of
        self._listeners: dict[str, set[Listener]] = {}
        self._unsent: dict[str, None] = {}
        self._has_unsent = asyncio.Event()
        #: Channels that are listened to again and again.
        self._kept: set[str] = set()
        #: Channels that the server was asked for on the present connection, and how often it has yet to confirm that.
        self._asked: set[str] = set()
        self._unconfirmed: Counter[str] = Counter()
        self._confirmation = asyncio.Condition()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to serve."""
        self._tasks = [asyncio.create_task(each) for each in (self._keep_listening(), self._keep_publishing())]

    async def close(self) -> None:
        """End it."""
        await asyncio.gather(*map(end_task, self._tasks))

    def publish(self, topic: str) -> None:
        """Send it soon."""
        if len(self._unsent) < _UNSENT:
            self._unsent[topic] = None
            self._has_unsent.set()

    @asynccontextmanager
    async def subscribe(self, topics: Sequence[str]) -> AsyncIterator[Subscription]:
        """Listen to topics."""
        by_channel = {self._channel_of(topic): topic for topic in topics}
        async with self.listen(by_channel) as listener:
            yield TopicSubscription(listener, by_channel)

    @asynccontextmanager
    async def listen(self, channels: Iterable[str], *, again: bool = False) -> AsyncIterator[Listener]:
        """Listen to channels; what is sent after this is heard, unless the connection is out of order.

        `again` says that it will happen again with the same channels, of which there are few.
        """
        listener = Listener(channels)
        if again:
            self._kept |= listener.channels
        for channel in listener.channels:
            self._listeners.setdefault(channel, set()).add(listener)
        self._changed.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_SECONDS), self._confirmation:
                    await self._confirmation.wait_for(lambda: self._hears(listener))
            listener.counts_on_it = True
            yield listener
        finally:
            for channel in listener.channels:
                self._listeners[channel].discard(listener)
                if not self._listeners[channel]:
                    del self._listeners[channel]
            self._changed.set()

    def _hears(self, listener: Listener) -> bool:
        return listener.channels <= self._asked and not any(self._unconfirmed[each] for each in listener.channels)

    async def _keep_listening(self) -> None:
        told = False
        while True:
            try:
                client = await self._servers.new_node_client()
                try:
                    async with client.pubsub() as pubsub:
                        await self._serve(pubsub)
                finally:
                    await client.aclose()
            except (RedisError, RedisClusterException, QueueUnavailable, OSError, TimeoutError) as error:
                if not told:
                    log.warning("no wake-ups from Redis for a while; the queue is polled instead", error=str(error))
                told = True
                await asyncio.sleep(_RECONNECT_SECONDS)
            else:
                told = False

    async def _serve(self, pubsub: PubSub) -> None:
        """Until the connection breaks."""
        self._asked, self._unconfirmed = set(), Counter()
        await pubsub.connect()  # type: ignore[no-untyped-call]
        asking = asyncio.create_task(self._keep_asking(pubsub))
        # Whatever was sent while nobody listened is lost.
        for channel, listeners in self._listeners.items():
            for listener in listeners:
                if listener.counts_on_it:
                    listener.deliver([channel])
        try:
            silent = False
            while not asking.done():
                message = await pubsub.get_message(timeout=_SILENCE_SECONDS)
                if message is not None:
                    silent = False
                    await self._receive(message["type"], message["channel"])
                elif silent:
                    raise TimeoutError("the connection for wake-ups is dead")
                else:
                    silent = True
                    await pubsub.ping()
            asking.result()
        finally:
            await end_task(asking)
            self._asked, self._unconfirmed = set(), Counter()

    async def _receive(self, kind: str, channel: bytes | None) -> None:
        name = channel.decode() if channel else ""
        if kind == "subscribe":
            async with self._confirmation:
                self._unconfirmed[name] -= 1
                self._confirmation.notify_all()
        elif kind == "message":
            for listener in self._listeners.get(name, ()):
                listener.deliver([name])

    async def _keep_asking(self, pubsub: PubSub) -> None:
        """Have the server send what somebody listens to, and nothing else."""
        while True:
            self._changed.clear()
            wanted = self._kept | set(self._listeners)
            if more := wanted - self._asked:
                self._asked |= more
                self._unconfirmed.update(more)
                await pubsub.subscribe(*more)
            if less := self._asked - wanted:
                self._asked -= less
                await pubsub.unsubscribe(*less)
            await self._changed.wait()

    async def _keep_publishing(self) -> None:
        while True:
            await self._has_unsent.wait()
            topics, self._unsent = list(self._unsent), {}
            self._has_unsent.clear()
            for topic in topics:
                channel = self._channel_of(topic)
                try:
                    await self._servers.call(lambda client, _, to=channel: client.execute_command("PUBLISH", to, ""))  # type: ignore[misc]
                except QueueUnavailable as error:
                    log.debug("wake-ups are lost", error=str(error))
                    break
