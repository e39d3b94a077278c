"""Positions in a log: resumed from behind every frame, of logs out of order in all the ways that engines know."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from itertools import groupby

import pytest

from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Output, Stream
from fastlane_docker.logs.frames import FrameReader, joined
from fastlane_docker.logs.positions import Positions, parse_position

Frame = tuple[Stream, int, bytes]

OUT, ERR = Stream.STDOUT, Stream.STDERR
START = 1_795_516_000


def encoded(frames: list[Frame], since: int) -> bytes:
    """The log as the engine gives it: frames since a time, in the order of the log."""
    answer = bytearray()
    for stream, second, data in frames:
        if second >= since:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            payload = f"{stamp}.123456789Z ".encode() + data
            answer += bytes([1 if stream is OUT else 2, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload
    return bytes(answer)


def read(frames: list[Frame], after: str | None, chunk: int = 1 << 20) -> list[Output]:
    positions = Positions(after)
    answer = encoded(frames, positions.since)
    reader = FrameReader(positions)
    return [output for at in range(0, len(answer), chunk) for output in reader.feed(answer[at : at + chunk])]


def read_one_by_one(frames: list[Frame]) -> list[Output]:
    """An output for each frame: those that come together may be taken together."""
    reader = FrameReader(Positions(None))
    return [output for frame in frames for output in reader.feed(encoded([frame], 0))]


def written(pieces: Iterable[tuple[Stream, bytes]]) -> list[tuple[Stream, bytes]]:
    """What was written, whatever the pieces that it comes in."""
    return [(stream, b"".join(data for _, data in group)) for stream, group in groupby(pieces, lambda piece: piece[0])]


def of_stdout(outputs: Iterable[Output]) -> bytes:
    return b"".join(output.data for output in outputs if output.stream is OUT)


def assert_resumes_everywhere(frames: list[Frame]) -> list[Output]:
    outputs = read_one_by_one(frames)
    expected = [(stream, data) for stream, _, data in frames]
    assert [(output.stream, output.data) for output in outputs] == expected
    for index, output in enumerate(outputs):
        rest = written((each.stream, each.data) for each in read(frames, output.position))
        assert rest == written(expected[index + 1 :]), f"behind frame {index}, from {output.position}"
    for together in read(frames, None):
        assert together.position in {output.position for output in outputs}
    return outputs


def test_frames_of_both_streams_slightly_out_of_order() -> None:
    dice = random.Random(1)
    frames: list[Frame] = []
    for number in range(400):
        second = START + number // 10 + dice.choice([0, 0, 0, -1, -3])
        frames.append((dice.choice([OUT, ERR]), max(START, second), b"%d\n" % number))
    assert_resumes_everywhere(frames)


def test_a_line_that_is_written_for_minutes_keeps_the_time_of_its_beginning() -> None:
    frames: list[Frame] = []
    for number in range(120):
        frames.append((ERR, START + number, b"line %d\n" % number))
        if number >= 10:
            frames.append((OUT, START + 10, b"x" * 10))
    frames.append((OUT, START + 10, b"end\n"))
    frames += [(ERR, START + 120 + number, b"line\n") for number in range(20)]
    assert_resumes_everywhere(frames)


def test_a_clock_that_is_set_back_loses_nothing_of_what_follows() -> None:
    frames: list[Frame] = [(OUT, START + 3600 + number, b"before %d\n" % number) for number in range(60)]
    frames += [(OUT, START + number, b"after %d\n" % number) for number in range(60)]
    outputs = read_one_by_one(frames)
    for index in range(60, 120):
        rest = b"".join(each.data for each in read(frames, outputs[index].position))
        assert rest == b"".join(data for _, _, data in frames[index + 1 :])


def test_little_is_read_again() -> None:
    frames: list[Frame] = [(OUT, START + number, b"%d\n" % number) for number in range(3000)]
    outputs = assert_resumes_everywhere(frames[:100]) and read(frames, None)
    _, count = parse_position(outputs[-1].position)
    assert count < 10


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 1000])
def test_frames_may_be_cut_anywhere_on_their_way(chunk: int) -> None:
    frames: list[Frame] = [(OUT, START, b"one \x00 two\n"), (ERR, START, b"\xff\xfe"), (OUT, START + 1, b"no newline")]
    assert [each.data for each in read(frames, None, chunk)] == [data for _, _, data in frames]


def test_frames_that_come_together_are_taken_together() -> None:
    frames: list[Frame] = [(OUT, START, b"%d\n" % number) for number in range(1000)]
    assert len(read(frames, None)) == 1
    long_lines: list[Frame] = [(OUT, START, b"x" * 16_000) for _ in range(20)]
    assert all(len(output.data) < 100_000 for output in read(long_lines, None))


def test_an_empty_frame_is_the_newline_that_the_engine_dropped() -> None:
    frames: list[Frame] = [
        (OUT, START, b"x" * 16_384),
        (OUT, START, b""),
        (ERR, START, b"y\n"),
        (OUT, START + 9, b"z\n"),
    ]
    expected = [(OUT, b"x" * 16_384 + b"\n"), (ERR, b"y\n"), (OUT, b"z\n")]
    outputs = read_one_by_one(frames)
    assert written((each.stream, each.data) for each in read(frames, None)) == expected
    assert written((each.stream, each.data) for each in read(frames, outputs[0].position))[0] == (OUT, b"\n")


def test_newlines_that_the_engine_dropped_are_put_back_where_another_line_begins() -> None:
    frames: list[Frame] = []
    for number in range(0, 120, 3):
        frames += [(OUT, START + number, b"x" * 16_384), (OUT, START + number, b"%d" % number)]
        frames.append((ERR, START + number, b"between\n"))
    frames += [(OUT, START + 120, b"short\n"), (OUT, START + 121, b"x" * 16_384), (OUT, START + 121, b"no end")]
    lines = [b"x" * 16_384 + b"%d\n" % number for number in range(0, 120, 3)]
    stdout = b"".join(lines) + b"short\n" + b"x" * 16_384 + b"no end"

    outputs = read_one_by_one(frames)

    assert of_stdout(outputs) == of_stdout(read(frames, None)) == stdout
    for index, output in enumerate(outputs):
        assert of_stdout(outputs[: index + 1]) + of_stdout(read(frames, output.position)) == stdout
    # A log of nothing but long lines is not read again from its beginning.
    assert parse_position(outputs[-1].position)[0] > START + 100


def test_frames_that_the_engine_fills_with_its_own_trouble_are_refused() -> None:
    reader = FrameReader(Positions(None))
    words = b"error reading the log"
    with pytest.raises(EngineUnavailable, match="the engine says: error reading the log"):
        reader.feed(b"\x03\0\0\0" + len(words).to_bytes(4, "big") + words)


def test_neighbours_are_joined_and_keep_the_last_position() -> None:
    frames: list[Frame] = [(OUT, START, b"a\n"), (OUT, START, b"b\n"), (ERR, START, b"c\n"), (OUT, START, b"d\n")]
    outputs = read_one_by_one(frames)
    assert [(each.stream, each.data, each.position) for each in joined(outputs)] == [
        (OUT, b"a\nb\n", outputs[1].position),
        (ERR, b"c\n", outputs[2].position),
        (OUT, b"d\n", outputs[3].position),
    ]
