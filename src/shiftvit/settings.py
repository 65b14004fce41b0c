"""The base of all settings, and one line for what is wrong with one."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shiftvit.errors import ShiftViTError, nearest

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """The base of all settings: immutable, no unknown keys, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def validated(cls: type[S], values: dict[str, Any], origin: str) -> S:
    """Builds settings from a dictionary; the first fault becomes one line that begins with `origin`.

    Raises:
        ShiftViTError: an unknown key, or a value of the wrong type or out of range.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ShiftViTError(f"{origin}: {_explain(cls, error)}") from error


def first_fault(error: ValidationError) -> str:
    """Returns the first fault of stored settings that no user typed: where it is, and what."""
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'its top level'}: {fault['msg']}"


def _explain(root: type[BaseModel], error: ValidationError) -> str:
    """Puts the first fault of a validation in one line, with the nearest valid key for an unknown one."""
    fault = error.errors(include_url=False)[0]
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        section = root
        for part in path[:-1]:
            annotation = section.model_fields[part].annotation
            assert isinstance(annotation, type)
            assert issubclass(annotation, BaseModel)
            section = annotation
        return f"unknown setting {'.'.join(path)!r}; {nearest(path[-1], section.model_fields)}"
    keys = [part for part in path if part.isidentifier() and part not in {"constrained-int", "int", "float", "tuple"}]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message
    more = error.error_count() - 1
    return f"{'.'.join(keys)} = {fault['input']!r}: {message}" + (f" (and {more} more faults)" if more else "")
