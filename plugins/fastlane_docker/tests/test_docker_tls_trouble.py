"""What is said of each way in which TLS with an engine can be wrong, and TLS connections that are cut or ended."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import pytest
import pytest_asyncio
import requests

from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Output
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, Written
from fastlane_docker.engines.addresses import TlsFiles, parse_address
from fastlane_docker.engines.client import Client, chunks_of, hang_up
from fastlane_docker.logs.frames import FrameReader
from fastlane_docker.logs.positions import Positions
from fastlane_docker.runner import DockerRunner
from tests.services.certificates import Authority, Identity
from tests.services.fixtures import SharedEngine, SharedTlsEngine
from tests.services.tcp_proxy import TcpProxy
from tests.services.tls_server import TlsServer

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]
NOW = datetime.now(UTC)


async def trouble_with(runner: DockerRunner) -> str:
    """What the runner tells of its only host once it has found that it cannot be used."""
    await runner.open()
    async with asyncio.timeout(DEADLINE):
        while not (reason := (await runner.availability("docker:0")).reason):
            await asyncio.sleep(0.02)
    hosts: Any = (await runner.health())["hosts"]
    (host,) = hosts
    assert host["error"] == reason
    return reason


async def assert_works(runner: DockerRunner) -> None:
    """The runner's only host answers."""
    await runner.open()
    (place,) = (await runner.availability("docker:0")).places
    assert [run async for run in runner.list_owned(place)] == []


def farm(host: str, tls: object = None) -> list[dict[str, object]]:
    return [{"hosts": [host], "tls": tls}]


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """An authority that the engine does not know."""
    return Authority(tmp_path / "stranger")


@pytest.fixture
def sdk(tls_engine: SharedTlsEngine) -> Iterator[docker.DockerClient]:
    """The engine behind TLS as its operator sees it; in place of the other shared one."""
    client = docker.DockerClient(base_url=tls_engine.socket_url, timeout=60)
    yield client
    client.close()


@pytest.fixture
def proxy(tls_engine: SharedTlsEngine) -> Iterator[TcpProxy]:
    with TcpProxy(("127.0.0.1", tls_engine.port)) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def proxied(build_runner: Build, tls_engine: SharedTlsEngine, proxy: TcpProxy) -> AsyncIterator[DockerRunner]:
    """An open runner on the engine, through the proxy."""
    runner = build_runner(docker_hosts=farm(f"127.0.0.1:{proxy.port}", tls_engine.tls))
    await assert_works(runner)
    yield runner


async def test_good_tls_leaves_nothing_to_say(build_runner: Build, tls_engine: SharedTlsEngine) -> None:
    await assert_works(build_runner(docker_hosts=farm(tls_engine.url, tls_engine.tls)))


async def test_engine_signed_by_another_authority(
    build_runner: Build, tls_engine: SharedTlsEngine, stranger: Authority
) -> None:
    tls = {**tls_engine.tls, "ca": stranger.ca}

    reason = await trouble_with(build_runner(docker_hosts=farm(tls_engine.url, tls)))

    assert f"the Docker engine 127.0.0.1:{tls_engine.port} cannot be reached" in reason
    assert f"its certificate is not signed by an authority in {stranger.ca!r}: see `tls.ca` of its farm" in reason


@pytest.mark.parametrize("tls", [True, None])
async def test_engine_that_the_system_s_authorities_do_not_know(
    build_runner: Build, tls_engine: SharedTlsEngine, tls: object
) -> None:
    reason = await trouble_with(build_runner(docker_hosts=farm(tls_engine.url, tls)))

    assert "its certificate is signed by nobody that this system trusts: name a `tls.ca` in its farm" in reason


async def test_engine_by_a_name_that_its_certificate_has_not(build_runner: Build, tls_engine: SharedTlsEngine) -> None:
    reason = await trouble_with(build_runner(docker_hosts=farm(f"localhost:{tls_engine.port}", tls_engine.tls)))

    assert f"the Docker engine localhost:{tls_engine.port} cannot be reached" in reason
    assert "its certificate is not for 'localhost': write the host in `hosts` of its farm" in reason


async def test_engine_that_wants_a_client_certificate(build_runner: Build, tls_engine: SharedTlsEngine) -> None:
    runner = build_runner(docker_hosts=farm(tls_engine.url, {"ca": tls_engine.authority.ca}))

    assert "wants a client certificate: name one in `tls.cert` and `tls.key` of its farm" in await trouble_with(runner)


async def test_engine_that_refuses_the_client_s_certificate(
    build_runner: Build, tls_engine: SharedTlsEngine, stranger: Authority
) -> None:
    client = stranger.issue("fastlane")
    tls = {"ca": tls_engine.authority.ca, "cert": client.cert, "key": client.key}

    reason = await trouble_with(build_runner(docker_hosts=farm(tls_engine.url, tls)))

    assert f"it refuses the client certificate {client.cert!r}: see `tls.cert` of its farm" in reason


async def test_engine_that_refuses_an_expired_client_s_certificate(
    build_runner: Build, tls_engine: SharedTlsEngine
) -> None:
    expired = datetime(2001, 2, 3, 4, 5, tzinfo=UTC)
    client = tls_engine.authority.issue("fastlane", not_before=expired - timedelta(days=1), not_after=expired)
    tls = {"ca": tls_engine.authority.ca, "cert": client.cert, "key": client.key}

    reason = await trouble_with(build_runner(docker_hosts=farm(tls_engine.url, tls)))

    assert f"it refuses the client certificate {client.cert!r}, which expired on 2001-02-03 04:05 UTC" in reason


async def test_plain_http_to_an_engine_that_wants_tls(build_runner: Build, tls_engine: SharedTlsEngine) -> None:
    reason = await trouble_with(build_runner(docker_hosts=farm(f"127.0.0.1:{tls_engine.port}")))

    assert f"the Docker engine 127.0.0.1:{tls_engine.port} cannot be reached" in reason
    assert "the engine wants TLS: give its farm in DOCKER_HOSTS a `tls`" in reason


async def test_tls_to_an_engine_without(
    build_runner: Build, docker_engine: SharedEngine, tls_engine: SharedTlsEngine
) -> None:
    host = docker_engine.url.removeprefix("tcp://")
    if "://" in host:
        pytest.skip("the shared engine does not listen on TCP")

    reason = await trouble_with(build_runner(docker_hosts=farm(host, tls_engine.tls)))

    assert f"the Docker engine {host} cannot be reached" in reason
    assert "it does not speak TLS on this port: name its port for TLS in `hosts` of its farm" in reason


@pytest.mark.parametrize(
    ("begin", "end", "told"),
    [
        (NOW - timedelta(days=2), NOW - timedelta(days=1), "has expired: renew it (the engine's --tlscert"),
        (NOW + timedelta(days=1), NOW + timedelta(days=2), "is not valid yet: compare the clocks of both machines"),
    ],
)
async def test_engine_whose_certificate_is_of_another_time(
    build_runner: Build, tls_engine: SharedTlsEngine, begin: datetime, end: datetime, told: str
) -> None:
    identity = tls_engine.authority.issue("127.0.0.1", not_before=begin, not_after=end)

    with TlsServer(identity, _handshake) as server:
        reason = await trouble_with(build_runner(docker_hosts=farm(f"127.0.0.1:{server.port}", tls_engine.tls)))

    assert told in reason


def _handshake(number: int, connection: socket.socket, context: ssl.SSLContext) -> None:
    with context.wrap_socket(connection, server_side=True):
        pass


async def test_reason_that_was_lost_while_the_request_was_sent_is_asked_for(
    build_runner: Build, tls_engine: SharedTlsEngine
) -> None:
    def serve(number: int, connection: socket.socket, context: ssl.SSLContext) -> None:
        if number % 2:
            context.load_verify_locations(tls_engine.authority.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        else:
            context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)
            # Closing resets the connection.
            secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with TlsServer(tls_engine.authority.issue("127.0.0.1"), serve) as server:
        tls = {"ca": tls_engine.authority.ca}
        reason = await trouble_with(build_runner(docker_hosts=farm(f"127.0.0.1:{server.port}", tls)))

    assert "it wants a client certificate" in reason


@pytest.mark.parametrize("size", [1, 64 * 1024])
async def test_engine_that_hangs_up_for_no_reason_of_tls(
    build_runner: Build, tls_engine: SharedTlsEngine, size: int
) -> None:
    def serve(number: int, connection: socket.socket, context: ssl.SSLContext) -> None:
        # What is left unread makes closing a reset.
        connection.recv(size)

    with TlsServer(tls_engine.authority.issue("127.0.0.1"), serve) as server:
        reason = await trouble_with(build_runner(docker_hosts=farm(f"127.0.0.1:{server.port}", tls_engine.tls)))

    assert f"the Docker engine 127.0.0.1:{server.port} cannot be reached" in reason
    assert "tls" not in reason


async def test_system_s_authorities_are_enough(
    build_runner: Build, tls_engine: SharedTlsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", tls_engine.authority.ca)
    tls = {"cert": tls_engine.client.cert, "key": tls_engine.client.key}

    await assert_works(build_runner(docker_hosts=farm(tls_engine.url, tls)))


async def test_environment_changes_neither_the_authorities_nor_the_way(
    build_runner: Build, tls_engine: SharedTlsEngine, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", stranger.ca)
    await assert_works(build_runner(docker_hosts=farm(tls_engine.url, tls_engine.tls)))

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", tls_engine.authority.ca)
    tls = {**tls_engine.tls, "ca": stranger.ca}
    assert "not signed by an authority" in await trouble_with(build_runner(docker_hosts=farm(tls_engine.url, tls)))


def client_of(engine: SharedTlsEngine) -> Client:
    files = TlsFiles(ca=engine.authority.ca, cert=engine.client.cert, key=engine.client.key)
    address = parse_address(engine.url, files)
    return Client.connected(address.url, 30, connections=4, tls=address.tls)


def test_own_authorities_are_the_only_ones(tls_engine: SharedTlsEngine) -> None:
    with client_of(tls_engine) as client:
        client.ping_within(30)

        pool = client.get_adapter("https://").poolmanager.connection_pool_kw

    assert pool["ssl_context"].cert_store_stats() == {"x509": 1, "x509_ca": 1, "crl": 0}


async def test_renewed_files_are_read_without_a_restart(
    build_runner: Build, tls_engine: SharedTlsEngine, stranger: Authority, tmp_path: Path
) -> None:
    def put(identity: Identity) -> None:
        for source, name in ((identity.cert, "cert.pem"), (identity.key, "key.pem")):
            shutil.copy(source, tmp_path / f"{name}.new")
            (tmp_path / f"{name}.new").rename(tmp_path / name)

    async def until(places: bool) -> None:
        async with asyncio.timeout(DEADLINE):
            while bool((await runner.availability("docker:0")).places) is not places:
                await asyncio.sleep(0.02)

    put(tls_engine.client)
    tls = {"ca": tls_engine.authority.ca, "cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    runner = build_runner(docker_hosts=farm(tls_engine.url, tls))
    await assert_works(runner)

    put(stranger.issue("fastlane"))
    await until(places=False)
    (tmp_path / "key.pem").unlink()
    async with asyncio.timeout(DEADLINE):
        while "tls.key" not in (await runner.availability("docker:0")).reason:
            await asyncio.sleep(0.02)
    put(tls_engine.authority.issue("fastlane"))
    await until(places=True)


async def test_log_over_tls_goes_on_exactly_after_cuts(proxied: DockerRunner, proxy: TcpProxy, runs: RunDriver) -> None:
    script = "for i in $(seq 1 60); do echo $i; echo e$i >&2; sleep 0.05; done; printf end"
    run = await runs.start(proxied, f"sh -c '{script}'")
    outputs: list[Output] = []
    troubles: list[str] = []
    cuts = 0
    while True:
        try:
            async for output in proxied.logs(run.handle, after=outputs[-1].position if outputs else None, follow=True):
                outputs.append(output)
                if len(outputs) >= 20 * (cuts + 1) and cuts < 4:
                    cuts += 1
                    proxy.cut()
            break
        except EngineUnavailable as error:
            troubles.append(str(error))

    numbers = range(1, 61)
    assert Written.of(outputs) == Written(
        stdout=b"".join(b"%d\n" % number for number in numbers) + b"end",
        stderr=b"".join(b"e%d\n" % number for number in numbers),
    )
    assert cuts
    assert not [trouble for trouble in troubles if "`tls" in trouble]


async def test_whoever_waits_over_tls_hears_that_the_engine_hangs(
    proxied: DockerRunner, proxy: TcpProxy, runs: RunDriver
) -> None:
    run = await runs.start(proxied, "sh -c 'echo ready; exec sleep 60'")
    waiting = asyncio.create_task(proxied.wait(run.handle))
    await run.until_ready()
    proxy.hang()

    with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{proxy.port}.*(no answer|timed out)"):
        await asyncio.wait_for(waiting, DEADLINE)

    proxy.pass_on()


@pytest.fixture
def endless(sdk: docker.DockerClient) -> Iterator[str]:
    """A container that writes without end."""
    logs = docker.types.LogConfig(type="local", config={"max-size": "10m", "max-file": "1", "compress": "false"})
    container = sdk.containers.run("busybox:latest", ["yes", "line"], detach=True, log_config=logs)
    yield str(container.id)
    container.remove(force=True, v=True)


class Reader(threading.Thread):
    """Reads a log, or a stream that gives nothing, until it ends."""

    def __init__(self, answer: requests.Response) -> None:
        super().__init__(daemon=True)
        self._answer = answer
        self._begun = threading.Event()
        self.read = bytearray()
        self.failure: Exception | None = None

    def run(self) -> None:
        frames = FrameReader(Positions(None))
        self._begun.set()
        try:
            for data in chunks_of(self._answer):
                for output in frames.feed(data):
                    self.read += output.data
        except Exception as error:
            self.failure = error

    def has_begun(self, size: int) -> None:
        """Return once it has read so many bytes."""
        assert self._begun.wait(DEADLINE)
        while len(self.read) < size:
            assert self.is_alive(), self.failure
            time.sleep(0.001)


@pytest.mark.parametrize("busy", [True, False])
def test_reader_whose_stream_is_ended_by_another_thread_returns_and_reads_nothing_but_the_log(
    tls_engine: SharedTlsEngine, endless: str, busy: bool
) -> None:
    path, parameters = f"/containers/{endless}/logs", {"stdout": 1, "timestamps": 1, "follow": 1}
    if not busy:
        path, parameters = "/events", {}

    with client_of(tls_engine) as client:
        for _ in range(10):
            with client.streaming(path, parameters, quiet_seconds=DEADLINE) as answer:
                reader = Reader(answer)
                reader.start()
                reader.has_begun(1000 if busy else 0)

                hang_up(answer)

                reader.join(DEADLINE)
                assert not reader.is_alive()
            assert bytes(reader.read) == b"line\n" * (len(reader.read) // 5)
            assert "the connection was closed in the middle of an answer" in str(reader.failure)
