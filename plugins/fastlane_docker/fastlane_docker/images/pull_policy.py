"""When an image is pulled onto a host; the meanings are those of Kubernetes' `imagePullPolicy`."""

from __future__ import annotations

from typing import Literal

#: As farms and jobs name it:
#:
#: - `missing`: if the host does not have it.
#: - `always`: for every run, so that a tag that was moved is noticed. A registry out of reach fails the run, even if
#:   the host has the image: nobody knows whether it is still the one that is wanted.
#: - `never`: not at all. A run of an image that its host does not have fails.
PullPolicy = Literal["missing", "always", "never"]
