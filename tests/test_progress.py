from __future__ import annotations

import logging

import pytest

from rdm.progress import current_sink, progress_to, tracking


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start(self, stage: str, total: int, unit: str, done: int) -> None:
        self.calls.append(("start", stage, total, unit, done))

    def update(self, done: int, note: str) -> None:
        self.calls.append(("update", done, note))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_sink_sees_start_counts_and_finish() -> None:
    recorder = Recorder()
    with progress_to(recorder), tracking("embed", 4, "shards", done=1) as tracker:
        tracker.advance(2)
        tracker.set(4, "loss 0.1")
    assert recorder.calls == [
        ("start", "embed", 4, "shards", 1),
        ("update", 3, ""),
        ("update", 4, "loss 0.1"),
        ("finish",),
    ]


def test_stage_that_fails_is_finished() -> None:
    recorder = Recorder()
    with (
        pytest.raises(ValueError, match="boom"),
        progress_to(recorder),
        tracking("embed", 1, "shards"),
    ):
        raise ValueError("boom")
    assert recorder.calls[-1] == ("finish",)


def test_inner_sink_is_replaced_by_the_outer_one_again() -> None:
    outer, inner = Recorder(), Recorder()
    with progress_to(outer):
        with progress_to(inner):
            assert current_sink() is inner
        assert current_sink() is outer
    assert current_sink() is None


def test_log_has_a_line_at_start_and_end(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="rdm.progress"),
        tracking("ingest", 3, "shards", done=1) as tracker,
    ):
        tracker.advance(2)
    assert caplog.messages[0] == "ingest: 3 shards, 1 done before"
    assert caplog.messages[1].startswith("ingest: 3/3 shards in ")
    assert len(caplog.messages) == 2
