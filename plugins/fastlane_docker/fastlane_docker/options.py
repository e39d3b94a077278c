"""What a job may ask of its container, under `"docker"` in the payload."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SMALLEST_MEMORY = 6 * 1024**2


class DockerOptions(BaseModel):
    """Options of one job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entrypoint: list[str] | None = Field(default=None, description="Replaces the image's entry point.", max_length=1000)
    workdir: str | None = Field(default=None, description="Folder that the command starts in.", max_length=4096)
    user: str | None = Field(default=None, description="User, or user:group, that it runs as.", max_length=256)
    memory: str | None = Field(default=None, description="Most memory that it may use: bytes, or with k, m or g.")
    cpus: float | None = Field(default=None, gt=0, le=4096, description="Processors that it may use, such as 0.5.")

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None and memory_bytes(value) < _SMALLEST_MEMORY:
            raise ValueError(f"{value!r} is less than Docker's least, 6m")
        return value


def memory_bytes(text: str) -> int:
    """The bytes that a size such as `512m` stands for; ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,15})([bkmg]?)b?", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r}: expected a number of bytes, or one with k, m or g, such as 512m")
    return int(found[1]) * _UNITS[found[2]]
