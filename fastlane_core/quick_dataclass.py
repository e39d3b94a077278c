"""Dataclasses that are frozen for whoever checks types, and made and replaced as quickly as others are copied.

A frozen dataclass sets each of its fields by `object.__setattr__`, and `dataclasses.replace` passes all of them on by
name: together a third of what accepting a job costs, and most of what a step of its life does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["quick_dataclass", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass as quick_dataclass
    from dataclasses import replace
else:
    import dataclasses

    def quick_dataclass(*, frozen, kw_only, slots):
        """`dataclass` without the guard at run time: nothing but type checkers keeps these from being changed in place.

        They compare and hash as frozen ones do. There is no `__post_init__`, as `replace` makes its copy without.
        """

        def decorate(cls):
            made = dataclasses.dataclass(kw_only=kw_only, slots=slots, unsafe_hash=frozen)(cls)
            # The name that Python 3.13 gives it in all dataclasses.
            made.__replace__ = _replacing(made)
            return made

        return decorate

    def replace(record, /, **changes):
        """As `dataclasses.replace`, which other dataclasses get."""
        quick = getattr(record, "__replace__", None)
        return dataclasses.replace(record, **changes) if quick is None else quick(**changes)

    def _replacing(cls):
        # Written out field by field, as `dataclass` itself does with `__init__`.
        lines = [
            "def __replace__(self, /, **changes):",
            " new = make(cls)",
            *(f" new.{field.name} = self.{field.name}" for field in dataclasses.fields(cls)),
            " for name, value in changes.items():",
            "  setattr(new, name, value)",
            " return new",
        ]
        made = {"make": object.__new__, "cls": cls}
        exec("\n".join(lines), made)  # noqa: S102
        return made["__replace__"]
