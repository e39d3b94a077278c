"""Chunked bodies, cut anywhere on their way, and what is none."""

from __future__ import annotations

import pytest

from fastlane_docker.engines.chunked import ChunkedBody

CONTENT = [b"a", b"line\r\n", b"x" * 300, b"\r\n0\r\n\r\n", b"last"]


def chunked(pieces: list[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nTrailer: yes\r\nAnother: one\r\n\r\n"])
def test_content_is_exact_wherever_it_is_cut(size: int, end: bytes) -> None:
    body, sent = ChunkedBody(), chunked(CONTENT, end)
    content = b""
    for at in range(0, len(sent), size):
        assert not body.complete, f"{len(sent) - at} bytes are still to come"
        content += body.feed(sent[at : at + size])
    assert content == b"".join(CONTENT)
    assert body.complete


def test_content_is_given_as_soon_as_it_comes() -> None:
    body = ChunkedBody()
    assert body.feed(b"5;name=value\r\nab") == b"ab"
    assert body.feed(b"cde\r\n3\r") == b"cde"
    assert body.feed(b"\nfgh") == b"fgh"
    assert not body.complete


@pytest.mark.parametrize("sent", [b"no chunk\r\n", b"2\r\nabc\r\n5\r\n", b"-1\r\n", b"0" * 20_000])
def test_what_is_not_chunked_is_refused(sent: bytes) -> None:
    with pytest.raises(ConnectionError):
        ChunkedBody().feed(sent)
