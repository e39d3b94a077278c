"""TLS in the settings, and the files that it names."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import trustme
from cryptography.hazmat.primitives import serialization

from fastlane_core.errors import SettingsError
from fastlane_core.settings import Settings
from fastlane_core.testing.runner_context import runner_context
from fastlane_docker.engines.addresses import TlsFiles
from fastlane_docker.engines.certificates import expiry_of, make_context, state_of
from fastlane_docker.plugin import fastlane_settings
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings
from tests.services.certificates import Authority, Identity

Build = Callable[..., DockerRunner]

PAST = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
#: Nothing listens there.
CLOSED = "127.0.0.1:1"


def load(tmp_path: Path, *farms: object) -> DockerSettings:
    path = tmp_path / "fastlane.conf"
    path.write_text(f"DOCKER_HOSTS = '''{json.dumps(farms)}'''")
    return Settings.load(fastlane_settings(), path=path, environment={}).section(DockerSettings)


def runner_of(*farms: object) -> DockerRunner:
    settings = DockerSettings.model_validate({"docker_hosts": farms})
    return DockerRunner(runner_context(settings, deployment_id="deployment"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def client(authority: Authority) -> Identity:
    return authority.issue("fastlane")


@pytest.mark.parametrize(
    ("farm", "url", "files"),
    [
        ({"hosts": ["a"], "tls": True}, "https://a:2376", TlsFiles()),
        ({"hosts": ["https://a"]}, "https://a:2376", TlsFiles()),
        ({"hosts": ["https://a"], "tls": False}, "https://a:2376", TlsFiles()),
        ({"hosts": ["tcp://a:1"], "tls": {}}, "https://a:1", TlsFiles()),
        ({"hosts": ["a"], "tls": {"ca": "x"}}, "https://a:2376", TlsFiles(ca="x")),
        ({"hosts": ["a"], "tls": {"cert": "x", "key": "y"}}, "https://a:2376", TlsFiles(cert="x", key="y")),
        ({"hosts": ["a"], "tls": False}, "tcp://a:2375", None),
        ({"hosts": ["a"], "tls": None}, "tcp://a:2375", None),
        ({"hosts": ["a", "unix:///s"], "tls": True}, "https://a:2376", TlsFiles()),
    ],
)
def test_tls_of_a_farm(tmp_path: Path, farm: object, url: str, files: TlsFiles | None) -> None:
    (settings,) = load(tmp_path, farm).docker_hosts

    address, *sockets = settings.addresses()

    assert (address.url, address.tls) == (url, files)
    assert [each.tls for each in sockets] == [None] * len(sockets)


@pytest.mark.parametrize(
    ("tls", "told"),
    [
        ({"cert": "x"}, "`cert` without `key`"),
        ({"key": "x"}, "`key` without `cert`"),
        ({"ca": "x", "verify": False}, "verify: the hosts' certificates are always verified"),
        ({"verify": True}, "always verified"),
        ({"insecureSkipVerify": True}, "nothing turns that off"),
        ({"assert_hostname": False}, "nothing turns that off"),
        ({"caa": "x"}, "caa"),
        ({"ca": ""}, "ca"),
        ({"ca": 1}, "ca"),
        ("yes", "expected true, or an object"),
        (["a"], "expected true, or an object"),
    ],
)
def test_bad_tls_is_refused_by_farm_and_key(tmp_path: Path, tls: object, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, {"hosts": ["a"], "match": "x"}, {"hosts": ["b"], "tls": tls})

    assert "DOCKER_HOSTS[1].tls" in str(caught.value)
    assert told in str(caught.value)


def test_tls_that_no_host_could_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"DOCKER_HOSTS\[0\].*`tls` is of no use"):
        load(tmp_path, {"hosts": ["unix:///a", "unix:///b"], "tls": True})


def test_hosts_are_compared_by_the_port_that_tls_gives_them(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"DOCKER_HOSTS\[0\].*twice: a:2376"):
        load(tmp_path, {"hosts": ["a", "https://a:2376"], "tls": True})


@pytest.mark.parametrize("other", [{"hosts": ["a:2376"]}, {"hosts": ["a"], "tls": {"ca": "x"}}])
def test_one_host_with_two_kinds_of_tls_is_refused_by_the_names_of_its_farms(tmp_path: Path, other: object) -> None:
    with pytest.raises(SettingsError, match=r"docker:gpu and docker:1 both have the host a:2376"):
        load(tmp_path, {"name": "gpu", "match": "x", "hosts": ["https://a"]}, other)


def test_one_host_with_the_same_tls_in_two_farms_is_fine(tmp_path: Path) -> None:
    settings = load(tmp_path, {"match": "x", "hosts": ["https://a"]}, {"hosts": ["a"], "tls": True})

    assert len(settings.docker_hosts) == 2


def _missing(tls: dict[str, str], folder: Path) -> None:
    Path(tls["key"]).unlink()


def _folder(tls: dict[str, str], folder: Path) -> None:
    tls["ca"] = str(folder)


def _empty(tls: dict[str, str], folder: Path) -> None:
    Path(tls["ca"]).write_bytes(b"")


def _key_for_certificate(tls: dict[str, str], folder: Path) -> None:
    tls["cert"] = tls["key"]


def _garbage(tls: dict[str, str], folder: Path) -> None:
    Path(tls["cert"]).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def _certificate_for_key(tls: dict[str, str], folder: Path) -> None:
    tls["key"] = tls["cert"]


def _another_key(tls: dict[str, str], folder: Path) -> None:
    tls["key"] = Authority(folder / "another").issue("fastlane").key


def _key_of_another_kind(tls: dict[str, str], folder: Path) -> None:
    leaf = trustme.CA().issue_cert("fastlane", key_type=trustme.KeyType.RSA)
    leaf.private_key_pem.write_to_path(tls["key"])


def _encrypted(tls: dict[str, str], folder: Path) -> None:
    path = Path(tls["key"])
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, form, encryption))


def _no_authority(tls: dict[str, str], folder: Path) -> None:
    tls["ca"] = tls["cert"]


@pytest.mark.parametrize(
    ("spoil", "key", "told"),
    [
        (_missing, "key", "No such file"),
        (_folder, "ca", "cannot be read: Is a directory"),
        (_empty, "ca", "holds no PEM certificate"),
        (_no_authority, "ca", "none of its certificates is that of an authority"),
        (_key_for_certificate, "cert", "holds no PEM certificate"),
        (_garbage, "cert", "holds no certificate that can be read"),
        (_certificate_for_key, "key", "holds no PEM private key"),
        (_another_key, "key", "does not belong to the certificate"),
        (_key_of_another_kind, "key", "does not belong to the certificate"),
        (_encrypted, "key", "is encrypted"),
    ],
)
async def test_worker_refuses_files_that_cannot_work(
    tmp_path: Path,
    authority: Authority,
    client: Identity,
    spoil: Callable[[dict[str, str], Path], None],
    key: str,
    told: str,
) -> None:
    tls = {"ca": authority.ca, "cert": client.cert, "key": client.key}
    spoil(tls, tmp_path)
    runner = runner_of({"match": "x", "hosts": ["a"]}, {"name": "gpu", "hosts": [CLOSED], "tls": tls})

    assert runner.lane_for("y") == "docker:gpu"
    with pytest.raises(SettingsError) as caught:
        await runner.open()

    await runner.close()
    assert str(caught.value).startswith(f"the farm docker:gpu in DOCKER_HOSTS cannot use TLS: tls.{key} = {tls[key]!r}")
    assert told in str(caught.value)


async def test_worker_hears_of_every_farm_s_files_at_once(tmp_path: Path) -> None:
    farms = [{"match": name, "name": name, "hosts": [name], "tls": {"ca": f"/{name}"}} for name in ("one", "two")]

    with pytest.raises(SettingsError, match=r"(?s)docker:one .*'/one'.*\n.*docker:two .*'/two'"):
        await runner_of(*farms).open()


async def test_worker_warns_of_an_expired_client_certificate_and_starts(
    build_runner: Build, authority: Authority
) -> None:
    client = authority.issue("fastlane", not_before=PAST - timedelta(days=1), not_after=PAST)
    runner = build_runner(docker_hosts=[{"hosts": [CLOSED], "tls": {"cert": client.cert, "key": client.key}}])

    with structlog.testing.capture_logs() as logs:
        await runner.open()

    (warning,) = [each for each in logs if "expired" in each]
    assert (warning["farm"], warning["path"], warning["expired"]) == (
        "docker:0",
        client.cert,
        "2001-02-03T04:05:06+00:00",
    )


async def test_worker_with_good_files_starts(build_runner: Build, authority: Authority, client: Identity) -> None:
    tls = {"ca": authority.ca, "cert": client.cert, "key": client.key}
    runner = build_runner(docker_hosts=[{"hosts": [CLOSED], "tls": tls}, {"hosts": ["https://127.0.0.1:2"]}])

    with structlog.testing.capture_logs() as logs:
        await runner.open()

    assert not [each for each in logs if "expired" in each]


@pytest.mark.parametrize("kind", list(trustme.KeyType))
@pytest.mark.parametrize(
    "expiry", ["1999-12-31T23:59:59+00:00", "2049-12-31T23:59:59+00:00", "2050-01-01T00:00:00+00:00"]
)
def test_expiry_is_read_from_the_certificate(tmp_path: Path, expiry: str, kind: trustme.KeyType) -> None:
    begin, end = PAST - timedelta(days=3650), datetime.fromisoformat(expiry)
    leaf = trustme.CA().issue_cert("fastlane", not_before=begin, not_after=end, key_type=kind)
    path = tmp_path / "cert.pem"
    path.write_text("Ärgernis before the first line\n")
    with path.open("ab") as file:
        file.write(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))

    assert expiry_of(TlsFiles(cert=str(path))) == end


async def test_worker_starts_with_a_certificate_whose_expiry_is_written_unusually(
    build_runner: Build, authority: Authority
) -> None:
    client = authority.issue("fastlane", not_before=PAST, not_after=PAST + timedelta(days=1))
    path = Path(client.cert)
    certificate = ssl.PEM_cert_to_DER_cert(path.read_text())
    path.write_text(ssl.DER_cert_to_PEM_cert(certificate.replace(b"010204040506Z", b"0102040405+00")))
    runner = build_runner(docker_hosts=[{"hosts": [CLOSED], "tls": {"cert": client.cert, "key": client.key}}])

    await runner.open()

    assert expiry_of(TlsFiles(cert=client.cert)) is None


def test_system_s_authorities_are_those_that_openssl_is_given(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority.ca)

    assert make_context(TlsFiles()).cert_store_stats()["x509_ca"] == 1


def test_public_authorities_stand_in_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))

    assert make_context(TlsFiles()).cert_store_stats()["x509_ca"] > 50


def test_change_of_any_file_is_noticed(authority: Authority, client: Identity) -> None:
    files = TlsFiles(ca=authority.ca, cert=client.cert, key=client.key)
    before = state_of(files)
    assert state_of(files) == before

    for path in (authority.ca, client.cert, client.key):
        copy = Path(f"{path}.new")
        copy.write_bytes(Path(path).read_bytes())
        copy.rename(path)
        assert state_of(files) != before
        before = state_of(files)
