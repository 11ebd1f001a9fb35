from __future__ import annotations

from rdm.training.engine.deepspeed_config import zero_settings


def test_buffers_hold_an_eighth_of_a_small_network() -> None:
    assert zero_settings(1, [1000, 7000]) == {"stage": 1, "reduce_bucket_size": 7000}
    assert zero_settings(2, [1000] * 80)["reduce_bucket_size"] == 10_000


def test_buffers_of_a_large_network_stay_bounded() -> None:
    assert zero_settings(3, [8_000_000] * 500)["reduce_bucket_size"] == 50_000_000


def test_a_parameter_always_fits_the_buffer() -> None:
    assert zero_settings(3, [90_000_000, 1000])["reduce_bucket_size"] == 90_000_000


def test_stage_3_gives_parameters_back_after_use() -> None:
    found = zero_settings(3, [1000] * 80)
    assert found["stage3_max_live_parameters"] == found["stage3_max_reuse_distance"] == 10_000
