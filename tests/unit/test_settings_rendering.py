"""`fastlane config` prints what loads back unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, SecretStr

from fastlane_core.hookspecs import SettingsSection
from fastlane_core.settings import CORE_SECTIONS, Settings, render


class Host(BaseModel):
    address: str
    weight: float = 1.0


class TrickySettings(BaseModel):
    tricky_text: str = Field(
        default='"quotes" \\ and\nlines\u2028\u0085\x00\x1b ☃ 🐳 # no comment',
        description="A text with everything.\n\nOver   several lines, one of them = very long indeed, so that it "
        "is wrapped where the width of the page ends, wherever that may be.",
    )
    tricky_hosts: list[Host] = Field(default=[Host(address="a:1"), Host(address="b", weight=2)], description="Hosts.")
    tricky_table: dict[str, list[int] | None] = Field(default={"a": [1, 2], "b": None, "c": []}, description="A table.")
    tricky_secret: SecretStr = Field(default=SecretStr(""), description="A secret.")
    tricky_folder: Path = Field(default=Path("some/folder"), description="A folder.")
    tricky_numbers: tuple[float, ...] = Field(default=(-1.5, 2e10), description="Numbers.")
    tricky_nothing: int | None = Field(default=None, description="Nothing.")
    tricky_made: list[str] = Field(default_factory=lambda: ["made"], description="Made by a function.")


class Farm(BaseModel):
    hosts: list[Host]
    limits: Host | None = None


class NestedSettings(BaseModel):
    nested_farms: list[Farm] = Field(
        default=[Farm(hosts=[Host(address="a"), Host(address="b", weight=2)])], description="F."
    )
    nested_table: dict[str, Host] = Field(default={"one": Host(address="c")}, description="T.")


SECTIONS = [
    *CORE_SECTIONS,
    SettingsSection(title="Tricky", model=TrickySettings),
    SettingsSection(title="Nested", model=NestedSettings),
]


def loaded(text: str, folder: Path) -> Settings:
    path = folder / "fastlane.conf"
    path.write_text(text, encoding="utf-8")
    return Settings.load(SECTIONS, path=path, environment={})


def keys() -> list[str]:
    return [name.upper() for section in SECTIONS for name in section.model.model_fields]


def test_as_printed_it_sets_nothing(tmp_path: Path) -> None:
    settings = loaded(render(SECTIONS), tmp_path)

    assert {settings.origin(key) for key in keys()} == {"default"}


def test_with_one_hash_removed_from_each_line_it_sets_every_default(tmp_path: Path) -> None:
    text = "\n".join(line.removeprefix("#") for line in render(SECTIONS).split("\n"))

    settings = loaded(text, tmp_path)

    for section in SECTIONS:
        assert settings.section(section.model) == section.model()
    assert all(settings.origin(key).startswith(str(tmp_path)) for key in keys())


@pytest.mark.parametrize("key", keys())
def test_each_key_can_be_uncommented_alone(key: str, tmp_path: Path) -> None:
    lines = render(SECTIONS).split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"#{key} = "))
    for number in range(start, lines.index("", start)):
        lines[number] = lines[number].removeprefix("#")

    settings = loaded("\n".join(lines), tmp_path)

    assert settings.origin(key).endswith(f"fastlane.conf:{start + 1}")
    assert all(settings.section(section.model) == section.model() for section in SECTIONS)


def test_every_key_is_there_with_description_and_default_under_its_banner() -> None:
    text = render(SECTIONS)

    for section in SECTIONS:
        assert f"{'#' * 80}\n## {section.title}\n{'#' * 80}\n" in text
        for name, field in section.model.model_fields.items():
            block = re.search(rf"((?:^## .*\n)+)^#{name.upper()} = ", text, re.MULTILINE)
            assert block, name
            words = " ".join(re.sub(r"^## ?", "", block[1], flags=re.MULTILINE).split())
            assert words.startswith(" ".join((field.description or "").split()))
            assert "Defaults to: " in words


def test_of_models_within_only_what_was_said_is_printed() -> None:
    text = render(SECTIONS)

    assert '## Defaults to: [{"hosts": [{"address": "a"}, {"address": "b", "weight": 2.0}]}]' in text
    assert '## Defaults to: {"one": {"address": "c"}}' in text


def test_every_line_is_a_comment() -> None:
    # Lines as the reader of the file counts them, and as other programs do.
    text = render(CORE_SECTIONS)

    assert all(line == "" or line.startswith("#") for line in text.splitlines())
    assert "WORKER_CONCURRENCY = 64" in text
    assert '#ENV_BLACKLISTED_WORDS = [\n#    "password",\n' in text
