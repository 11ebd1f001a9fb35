"""Errors that a user can mend. Each says what went wrong, where, and how to fix it."""

from __future__ import annotations


class RdmError(Exception):
    """A failure that the user can do something about.

    Args:
        what: what went wrong, one sentence without a full stop.
        where: the path, shard or field concerned; empty when the sentence names it already.
        fix: what to type or change.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", fix: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive the default reduction, and errors cross process borders
        # (Dask workers).
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[RdmError], what: str, where: str, fix: str) -> RdmError:
    return cls(what, where=where, fix=fix)


class UsageError(RdmError):
    """A command, specification or configuration that cannot be understood."""

    exit_code = 2


class SourceError(RdmError):
    """A source of photographs that does not exist, is empty, or gave nothing usable."""


class DatabaseError(RdmError):
    """A directory that is not a retrieval database, or one whose parts do not agree."""


class EncoderMismatchError(DatabaseError):
    """Embeddings of two different encoders would be compared."""


class ConcurrentWriterError(DatabaseError):
    """Another process is writing the same database, or training in the same folder."""


class StorageError(RdmError):
    """A read or write that failed: a full disk, a missing permission, a truncated file."""


class FailureBudgetError(RdmError):
    """A stage succeeded for fewer items than its `min_success_rate` allows."""


class CacheError(RdmError):
    """A latent cache that is incomplete or belongs to something else."""


class TrainingError(RdmError):
    """A training run that cannot start, go on or be resumed."""


class DeviceError(TrainingError):
    """A device that was asked for and is not there, in training and everywhere else."""


class JobError(TrainingError):
    """A training job that no setting ended, as when a rank is killed: the same command again may
    succeed."""


class ModelError(RdmError):
    """A model directory that cannot be opened."""


class MissingDependencyError(RdmError):
    """An optional package is not installed."""

    exit_code = 2
