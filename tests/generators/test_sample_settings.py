"""Which settings go together, and what their names mean."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rdm.errors import UsageError
from rdm.generators.sample_settings import SampleSettings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["sampler=dpm++2m", "eta=0"], r"DPM-Solver\+\+ 2M has no eta: leave eta out, or set"),
        (["sampler=ddpm", "eta=1"], "has no eta"),
        (["variance=beta"], "DDIM has no variance: leave variance out, or set sampler=ddpm"),
        (["sampler=ddpm", "spacing=karras"], "does not go with karras spacing: set spacing=uni"),
        (["sampler=ddpm", "num_steps=1"], "takes at least 2 steps: set num_steps"),
        (["sampler=plms", "num_steps=1"], "takes at least 2 steps"),
        (["guidance_scales.text=-1"], "the guidance scale of text is below 0"),
        (["guidance_scales.text=2", "autoguidance=other"], "set one"),
        (["sampler=dpm"], "sampler: Input should be 'ddim', 'ddpm'"),
        (["spacing=log"], "spacing: Input should be"),
        (["thresholding=hard"], "thresholding: Input should be"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(given: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SampleSettings().with_overrides(given)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ancestral", "ddpm"),
        ("pndm", "plms"),
        ("dpmsolver++", "dpm++2m"),
        ("sde-dpmsolver++", "dpm++2m-sde"),
    ],
)
def test_other_names_of_a_sampler_are_understood(name: str, meant: str) -> None:
    assert SampleSettings().with_overrides([f"sampler={name}"]).sampler == meant


def test_a_sampler_of_no_kind_is_refused_though_it_is_no_text() -> None:
    with pytest.raises(ValidationError, match="sampler"):
        SampleSettings.model_validate({"sampler": 3})


def test_what_is_left_to_the_sampler_is_filled_in() -> None:
    assert SampleSettings().filled().eta == 1.0
    assert SampleSettings(eta=0.0).filled().eta == 0.0
    ancestral = SampleSettings(sampler="ddpm").filled()
    assert (ancestral.eta, ancestral.variance) == (None, "posterior")
    assert SampleSettings(sampler="heun").filled() == SampleSettings(sampler="heun")


def test_settings_survive_their_own_record() -> None:
    """A record of the settings is read again: what fitted then fits now."""
    for given in (["sampler=unipc", "spacing=karras"], ["sampler=ddpm", "variance=beta"], []):
        settings = SampleSettings().with_overrides(given)
        for one in (settings, settings.filled()):
            assert SampleSettings.model_validate(one.model_dump(mode="json")) == one
