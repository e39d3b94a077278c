"""What the operator sets, and what a job may ask for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ProcessSettings(BaseModel):
    """Settings of the process runner."""

    process_folder: str = Field(
        default="fastlane-data/process",
        min_length=1,
        description=(
            "Folder in which the process runner keeps the state, the output and the working folders of its runs. "
            "All workers of this machine share it; it must be on a local disk."
        ),
    )
    process_max_running: int = Field(
        default=4, ge=1, description="Processes at a time, over all workers of this machine."
    )
    process_max_output_bytes: int = Field(
        default=1024**3,
        ge=1024,
        description="A process that writes more bytes than this to stdout or stderr is killed: it would fill the disk.",
    )
    process_allow_remote: bool = Field(
        default=False,
        description=(
            "Run processes although the API listens beyond loopback. There is no isolation: whoever reaches the API "
            "can then do on this machine whatever the worker's user can."
        ),
    )


class ProcessOptions(BaseModel):
    """The job option `process`."""

    model_config = ConfigDict(extra="forbid")

    shell: bool = Field(default=False, description="Give the command as it is to `/bin/sh -c`.")
