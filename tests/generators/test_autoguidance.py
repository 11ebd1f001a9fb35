"""Models that lead another one, and those that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_denoiser import SMALL_PIXELS

from rdm.diffusion.schedules import ScheduleConfig
from rdm.errors import ModelError, UsageError
from rdm.generators.conditions import Conditions, Known, LabelConfig
from rdm.generators.generator import GeneratorConfig
from rdm.generators.heads import GaussianConfig
from rdm.generators.model_folder import Model, ModelInfo, open_model, write_model
from rdm.generators.sample_settings import SampleSettings
from rdm.generators.spaces import PixelsConfig
from rdm.models.networks import build_network

HEAD = GaussianConfig(schedule=ScheduleConfig(num_timesteps=20))


def model(folder: Path, seed: int, **changes: Any) -> Model:
    """A model of pixels without conditions, in a folder."""
    folder.mkdir()
    torch.manual_seed(seed)
    config = GeneratorConfig(
        **{
            "network": SMALL_PIXELS,
            "space": PixelsConfig(),
            "conditions": Conditions(),
            "head": HEAD,
            **changes,
        }
    )
    write_model(folder, ModelInfo(generator=config, resolution=8), build_network(config.network))
    return open_model(folder)


def drawn(model: Model, settings: SampleSettings) -> torch.Tensor:
    return model.draw(model.generator.context([Known()] * 2), [1, 2], settings)


def test_a_weaker_model_leads_a_model_without_conditions(tmp_path: Path) -> None:
    strong, weak = model(tmp_path / "strong", 0), model(tmp_path / "weak", 1)
    settings = SampleSettings(num_steps=4, eta=0.0, autoguidance=str(weak.directory))
    plain = drawn(strong, settings.model_copy(update={"autoguidance": None}))
    led = drawn(strong, settings)
    assert not torch.allclose(led, plain, atol=1e-3)
    # A scale of 1 leads nowhere, and one of 0 is the weaker model itself.
    at_one = drawn(strong, settings.model_copy(update={"guidance_scale": 1.0}))
    assert torch.equal(at_one, plain)
    at_none = drawn(strong, settings.model_copy(update={"guidance_scale": 0.0}))
    alone = drawn(weak, SampleSettings(num_steps=4, eta=0.0))
    assert torch.allclose(at_none, alone, atol=2e-2)


def test_a_model_led_by_itself_is_itself(tmp_path: Path) -> None:
    strong = model(tmp_path / "strong", 0)
    settings = SampleSettings(num_steps=4, eta=0.0)
    led = drawn(strong, settings.model_copy(update={"autoguidance": str(strong.directory)}))
    assert torch.allclose(led, drawn(strong, settings), atol=1e-5)


def test_the_record_names_the_weaker_model_and_no_path(tmp_path: Path) -> None:
    strong, weak = model(tmp_path / "strong", 0), model(tmp_path / "weak", 1)
    settings = SampleSettings(autoguidance=str(weak.directory))
    assert strong.acting(settings)["autoguidance"] == f"weak {weak.digest}"
    assert "autoguidance" not in strong.acting(SampleSettings())
    assert strong.acting(settings)["guidance_scale"] == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"head": HEAD.model_copy(update={"prediction_type": "v"})},
            "differs in the prediction type",
        ),
        (
            {"head": GaussianConfig(schedule=ScheduleConfig(num_timesteps=30))},
            "differs in the schedule",
        ),
        (
            {"network": SMALL_PIXELS.model_copy(update={"sample_size": 16})},
            "differs in the shape of what it draws",
        ),
        (
            {
                "network": SMALL_PIXELS.model_copy(update={"num_classes": 3}),
                "conditions": Conditions(label=LabelConfig(num_classes=3)),
            },
            "differs in the conditions and the classes",
        ),
    ],
)
def test_a_model_that_works_on_something_else_is_refused_by_name(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    strong, other = model(tmp_path / "strong", 0), model(tmp_path / "other", 1, **changes)
    with pytest.raises(UsageError, match=words) as error:
        drawn(strong, SampleSettings(num_steps=2, autoguidance=str(other.directory)))
    assert error.value.where == str(other.directory)
    assert "earlier checkpoint of the same run" in str(error.value.fix)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    strong = model(tmp_path / "strong", 0)
    with pytest.raises(ModelError):
        drawn(strong, SampleSettings(num_steps=2, autoguidance=str(tmp_path / "nowhere")))
