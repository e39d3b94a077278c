"""How a settings file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlane_core.errors import SettingsError
from fastlane_core.settings.file import read_files


def read(text: str | bytes, folder: Path) -> tuple[dict[str, object], list[str]]:
    path = folder / "a.conf"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    given, problems = read_files(path)
    return {each.key: each.value for each in given}, [problem.removeprefix(f"{path}:") for problem in problems]


def test_values_are_python_or_json_literals(tmp_path: Path) -> None:
    values, problems = read(
        """# a comment
A = "text"  # and another
B = -1.5
C = true
D = null
E = [1, "two", {"three": False},
     None,
]
F = (1, 2)
G = {
    "match": "^test-\\d+$",
    "nested": {"x": [true, false, null]}
}
H = ("one "
     "text")
I = r"\\d"
J = 1_000
""",
        tmp_path,
    )

    assert problems == []
    assert values == {
        "A": "text",
        "B": -1.5,
        "C": True,
        "D": None,
        "E": [1, "two", {"three": False}, None],
        "F": [1, 2],
        "G": {"match": r"^test-\d+$", "nested": {"x": [True, False, None]}},
        "H": "one text",
        "I": r"\d",
        "J": 1000,
    }


def test_text_over_several_lines_is_kept_as_it_is(tmp_path: Path) -> None:
    hosts = '\n[\n  {"match": "", "hosts": ["localhost:2375"], "maxRunning": 2}\n]\n'

    values, problems = read(f'DOCKER_HOSTS = """{hosts}"""\n', tmp_path)

    assert (values, problems) == ({"DOCKER_HOSTS": hosts}, [])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import os", "found an import"),
        ("from os import environ", "found an import"),
        ("A = print('x')", "A: expected a literal"),
        ("A = os.environ['X']", "never executed"),
        ("A = 64 * 1024", "never executed"),
        ("A = [x for x in (1, 2)]", "never executed"),
        ("A = lambda: 1", "never executed"),
        ("A = f'{1}'", "never executed"),
        ("A = b'bytes'", "never executed"),
        ("A = ...", "never executed"),
        ("A = 2j", "never executed"),
        ("A = {1, 2}", "never executed"),
        ("A = {**{}}", "expected a quoted text as each key"),
        ("A = {1: 2}", "expected a quoted text as each key"),
        ("A = {'a': 1, 'a': 2}", "each key of a table once"),
        ("A = 1e999", "a finite number"),
        ("A = '\\ud800'", "surrogate"),
        ("A = sqlite", 'quote it ("sqlite")'),
        ("A = yes", 'quote it ("yes")'),
        ("A = [true, maybe]", "maybe"),
        ("A = B = 1", "expected KEY = value"),
        ("A, B = 1, 2", "expected KEY = value"),
        ("a.b = 1", "expected KEY = value"),
        ("A += 1", "found an assignment that adds"),
        ("A: int = 1", "found a colon"),
        ("'just text'", "found a value without a key"),
        ("if True: A = 1", "found a condition"),
        ("def a(): pass", "found a function"),
        ("del A", "expected KEY = value"),
        ("A = ", "expected KEY = value"),
        ("A = not quoted text", "expected KEY = value"),
        ("A = [1, 2", "expected KEY = value"),
        ("  A = 1", "expected KEY = value"),
        ("A = " + "[" * 5000, "expected KEY = value"),
        ("A = " + "-" * 100_000 + "1", "expected KEY = value"),
        ("A = \0", "expected KEY = value"),
    ],
)
def test_everything_else_is_refused_with_its_line(line: str, told: str, tmp_path: Path) -> None:
    _, problems = read(f"OK = 1\n{line}\n", tmp_path)

    assert len(problems) == 1
    number, _, message = problems[0].partition(": ")
    assert number in ("1", "2")
    assert told in message


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    read(f"A = open({str(mark)!r}, 'w')\n__import__('pathlib').Path({str(mark)!r}).touch()\n", tmp_path)

    assert not mark.exists()


def test_a_key_set_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    values, problems = read("A = 1\nB = 2\nA = 3\n", tmp_path)

    assert values == {"A": 1, "B": 2}
    assert problems == [f"3: A: expected each key once; it is set at {tmp_path}/a.conf:1"]


def test_the_line_of_a_problem_inside_a_long_value_is_told(tmp_path: Path) -> None:
    _, problems = read("A = [\n  1,\n  oops,\n]\n", tmp_path)

    assert problems[0].startswith("3: A: ")


def test_a_directory_is_its_conf_files_in_order_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "20-local.conf").write_text("A = 2\n")
    (tmp_path / "10-base.conf").write_text("A = 1\nB = 1\n")
    (tmp_path / "notes.txt").write_text("not a setting")

    given, problems = read_files(tmp_path)

    assert [(each.key, each.value) for each in given] == [("A", 1), ("B", 1), ("A", 2)]
    assert problems == []


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    latin = tmp_path / "latin.conf"
    latin.write_bytes(b"A = 1\nB = '\xe9'\n")
    large = tmp_path / "large.conf"
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    empty = tmp_path / "empty"
    empty.mkdir()

    for path, told in (
        (tmp_path / "absent.conf", "does not exist"),
        (latin / "x", "cannot be read"),
        (latin, r"not UTF-8 text \(line 2\)"),
        (large, "larger than"),
        (empty, r"no file that ends in \.conf"),
    ):
        with pytest.raises(SettingsError, match=told) as raised:
            read_files(path)
        assert str(path) in str(raised.value)


def test_byte_order_marks_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    assert read(b"\xef\xbb\xbfA = 1\r\nB = 2\r\n", tmp_path) == ({"A": 1, "B": 2}, [])
