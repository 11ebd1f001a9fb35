from __future__ import annotations

import pickle

import pytest

from rdm import errors
from rdm.errors import (
    EncoderMismatchError,
    MissingDependencyError,
    RdmError,
    StorageError,
    UsageError,
)
from rdm.sources import ImageDecodeError

ALL = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RdmError)
]


def test_message_says_what_where_and_fix() -> None:
    error = StorageError("the disk is full", where="/data", fix="free space")
    assert str(error) == "the disk is full\n  where: /data\n  fix:   free space"


def test_empty_fields_leave_no_line() -> None:
    assert str(UsageError("nothing to do")) == "nothing to do"


@pytest.mark.parametrize("cls", ALL)
def test_every_error_survives_pickling(cls: type[RdmError]) -> None:
    copy = pickle.loads(pickle.dumps(cls("what", where="there", fix="so")))
    assert (type(copy), copy.what, copy.where, copy.fix) == (cls, "what", "there", "so")


def test_usage_errors_exit_with_two_and_others_with_one() -> None:
    assert {cls for cls in ALL if cls.exit_code == 2} == {UsageError, MissingDependencyError}
    assert {cls.exit_code for cls in ALL} == {1, 2}


def test_encoder_mismatch_is_a_database_error() -> None:
    assert issubclass(EncoderMismatchError, errors.DatabaseError)


@pytest.mark.parametrize(
    "error", [ImageDecodeError("empty file"), ImageDecodeError("too narrow", "1x900")]
)
def test_decode_error_survives_pickling(error: ImageDecodeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason) == (str(error), error.reason)
