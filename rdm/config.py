"""Configuration: frozen pydantic models, overrides, digests and sizes in words."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rdm.errors import UsageError


class Config(BaseModel):
    """Base of every configuration: frozen, unknown fields refused, digestible."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change whenever any field does."""
        return digest_json(self.model_dump(mode="json"))

    def with_overrides(self, assignments: Iterable[str]) -> Self:
        """Return a copy with `key=value` assignments applied; `a.b=1` reaches inside.

        Raises:
            UsageError: an assignment has no `=`, names no field, or its value does not validate.
        """
        data = self.model_dump(mode="json")
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator:
                raise UsageError(f"--set {assignment!r} has no '='", fix="write --set key=value")
            _assign(data, key.strip(), _parse_value(text.strip()))
        return self._validated(data, "--set")

    def merged_with_file(self, path: Path | None) -> Self:
        """Return a copy with the fields of a JSON file applied; precedence is preset < file < flag.

        Raises:
            UsageError: the file is missing, is not a JSON object, or names unknown fields.
        """
        if path is None:
            return self
        try:
            loaded = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                "the configuration file cannot be read", where=path, fix="check --config"
            ) from error
        except ValueError as error:  # not JSON, or not UTF-8
            raise UsageError(
                f"the configuration file is not JSON: {error}", where=path, fix="mend the file"
            ) from error

        if not isinstance(loaded, dict):
            raise UsageError(
                "the configuration file does not hold a JSON object", where=path, fix="write {...}"
            )
        return self._validated(_deep_merge(self.model_dump(mode="json"), loaded), str(path))

    def _validated(self, data: dict[str, Any], where: str) -> Self:
        try:
            return type(self).model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            raise UsageError(
                f"{field}: {first['msg']}{_given(first['input'])}",
                where=where,
                fix=f"fields of {type(self).__name__}: {', '.join(type(self).model_fields)}",
            ) from error


def _is_none(value: object) -> bool:
    return value is None


def absent() -> Any:
    """Return the default of a record's field that its file leaves out where it is None."""
    return Field(default=None, exclude_if=_is_none)


class Record(BaseModel):
    """Values of a JSON file or of `--json`: typed fields, and `to_json` as the door to the file.

    Frozen, as configurations are, but nothing that a user sets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Return the values as the file holds them."""
        return self.model_dump(mode="json")


def _given(value: object) -> str:
    """Return what was given, for a message; nothing of a whole section, which says nothing."""
    return "" if isinstance(value, dict) else f" (got {value!r})"


def digest_json(value: Any) -> str:
    """Return 16 hexadecimal digits of a JSON-serializable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _assign(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node: Any = data
    is_new = False
    for parent in parents:
        if isinstance(node, dict) and parent in node and node[parent] is None:
            node[parent], is_new = {}, True  # a section that was left out: what it lacks is told
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (leaf not in node and not is_new):
        known = ", ".join(node) if isinstance(node, dict) else ", ".join(data)
        raise UsageError(
            f"there is no setting {dotted!r}", where="--set", fix=f"settings here: {known}"
        )
    node[leaf] = value


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_objects = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _deep_merge(merged[key], value) if both_objects else value
    return merged


_UNITS = {
    "": 1,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "P": 1000**5,
    "KI": 1024,
    "MI": 1024**2,
    "GI": 1024**3,
    "TI": 1024**4,
    "PI": 1024**5,
}


def parse_bytes(text: str | int) -> int:
    """Return a number of bytes from `16GB`, `16GiB`, `16G` or a plain number.

    Raises:
        UsageError: the text is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*((?:[KMGTP]I?)?)B?\s*", str(text).upper())
    if match is None:
        raise UsageError(f"{text!r} is not a size", fix="write for example 16GB, 16GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


def _checked_size(text: str) -> str:
    try:
        parse_bytes(text)
    except UsageError as error:  # pydantic wants a ValueError, and names the field
        raise ValueError(f"{error.what}; {error.fix}") from error
    return text


ByteSize = Annotated[str, AfterValidator(_checked_size)]
"""A setting that `parse_bytes` understands."""


def format_bytes(num_bytes: float) -> str:
    """Return a size in words with three significant digits, in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        # from 999.5 on, three digits would round to 1000
        if abs(num_bytes) < 999.5 or unit == "PB":
            break
        num_bytes /= 1000
    return (
        f"{num_bytes:.0f} {unit}"
        if unit == "B" or num_bytes >= 999.5
        else f"{num_bytes:.3g} {unit}"
    )
