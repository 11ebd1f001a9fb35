from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rdm.config import Config, Record, absent, digest_json, format_bytes, parse_bytes
from rdm.errors import UsageError
from rdm.sources import CropConfig


class Inner(Config):
    width: int = 4
    name: str = "a"


class Outer(Config):
    rate: float = 0.5
    inner: Inner = Inner()
    tags: tuple[str, ...] = ("x",)


def test_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="widht"):
        Inner(widht=3)  # type: ignore[call-arg]


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().width = 3  # type: ignore[misc]


def test_override_reaches_nested_field_and_leaves_the_rest() -> None:
    changed = Outer().with_overrides(["inner.width=7", "rate = 0.25", 'tags=["p", "q"]'])
    assert changed == Outer(rate=0.25, inner=Inner(width=7), tags=("p", "q"))


def test_override_does_not_change_the_original() -> None:
    config = Outer()
    config.with_overrides(["inner.width=7"])
    assert config.inner.width == 4


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rate", "has no '='"),
        ("inner.height=3", "no setting 'inner.height'"),
        ("rate.deep=3", "no setting 'rate.deep'"),
        ("inner.width=wide", "inner.width"),
    ],
)
def test_bad_override_names_the_field(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Outer().with_overrides([assignment])


def test_error_of_a_whole_model_names_the_model() -> None:
    with pytest.raises(UsageError, match="CropConfig: .*larger than frame_size"):
        CropConfig().with_overrides(["patch_size=2000"])


def test_file_overrides_preset_and_keeps_its_siblings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"inner": {"width": 9}}')
    assert Outer(rate=0.1).merged_with_file(path) == Outer(rate=0.1, inner=Inner(width=9))


def test_no_file_changes_nothing() -> None:
    assert Outer().merged_with_file(None) == Outer()


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe\x00", b'{"inner": {"height": 1}}', b'{"rate": "x"}']
)
def test_bad_file_is_a_usage_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Outer().merged_with_file(path)
    assert caught.value.where == str(path)


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Outer().merged_with_file(tmp_path / "none.json")


def test_digest_changes_with_every_field() -> None:
    digests = {
        Outer().digest(),
        Outer(rate=0.4).digest(),
        Outer(inner=Inner(name="b")).digest(),
        Outer(tags=()).digest(),
    }
    assert len(digests) == 4


@given(st.dictionaries(st.text(max_size=4), st.integers(), max_size=6))
def test_digest_does_not_depend_on_key_order(values: dict[str, int]) -> None:
    assert digest_json(values) == digest_json(dict(reversed(values.items())))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16GB", 16_000_000_000),
        ("16 GiB", 16 * 2**30),
        ("500MB", 500_000_000),
        ("1.5k", 1500),
        (" 12 ", 12),
        (42, 42),
        ("3B", 3),
        ("2T", 2 * 10**12),
    ],
)
def test_parse_bytes(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.2.3GB", ".", "16IB", "4 apples", "1e9"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_999, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5e15, "5 PB"),
        (5e18, "5000 PB"),
    ],
)
def test_format_bytes(num_bytes: float, expected: str) -> None:
    assert format_bytes(num_bytes) == expected


@given(st.floats(0, 1e21))
def test_format_bytes_never_writes_an_exponent(num_bytes: float) -> None:
    assert "e" not in format_bytes(num_bytes)


@given(st.integers(0, 10**15))
def test_format_bytes_reads_back_within_half_a_percent(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.0051)


class Size(Record):
    width: int
    unit: str | None = absent()


def test_record_leaves_absent_fields_out_of_its_file() -> None:
    assert Size(width=3).to_json() == {"width": 3}
    assert Size(width=3, unit="px").to_json() == {"width": 3, "unit": "px"}


@pytest.mark.parametrize("value", [{}, {"width": "wide"}, {"width": 3, "height": 4}])
def test_record_of_another_shape_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Size.model_validate(value)
