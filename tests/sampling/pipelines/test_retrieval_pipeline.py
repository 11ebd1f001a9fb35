# pyright: reportPrivateImportUsage=false
# users import diffusers' names from its front

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdm import RetrievalPipeline
from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder
from rdm.database.changes.plan import Removal
from rdm.errors import DatabaseError, StorageError, UsageError
from rdm.sampling import Model, SampleSettings
from rdm.sampling.drawing.draw import draw
from rdm.sampling.request.sample_request import request_of
from rdm.sampling.retrieval.look_up import look_up
from rdm.sampling.write_credits import credits_of

QUICK: dict[str, Any] = {"k": 2, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(model: Model, database: RetrievalDatabase) -> RetrievalPipeline:
    return RetrievalPipeline(model, database)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_call_draws_what_the_request_draws(
    pipe: RetrievalPipeline, model: Model, database: RetrievalDatabase
) -> None:
    out = pipe("an owl", seeds=range(3, 5), **QUICK)
    request = request_of(
        {"texts": ["an owl"], "seeds": "3-4", "settings": {"k": 2, "num_steps": 2}}
    )
    asked = look_up(request, model.info, {"birds": database})
    expected = draw(model, asked, SampleSettings(k=2, num_steps=2))
    assert np.array_equal(pixels(out.images), expected)
    assert [recipe.seed for recipe in out.recipes] == [3, 4]
    assert [credit.patch_id for credit in out.neighbors[0]] == asked[0].query.neighbor_ids.tolist()
    assert out.credits() == credits_of(out.recipes, [database])
    assert all(f"Photograph {one.image_id}" in out.credits() for one in out.neighbors[0])
    assert np.array_equal(np.stack([item.pixels for item in pipe.stream(request)]), expected)


def test_every_word_of_diffusers_reaches_the_request(pipe: RetrievalPipeline) -> None:
    generator = torch.Generator().manual_seed(11)
    out = pipe(
        ["an owl", "a tit"],
        negative_prompt="a dog",
        num_inference_steps=3,
        guidance_scale=1.5,
        eta=0.0,
        scheduler="ddim",
        generator=generator,
        num_images_per_prompt=2,
        k=2,
    )
    assert [(r.query and r.query.label, r.seed) for r in out.recipes] == [
        ("an owl", 11),
        ("an owl", 12),
        ("a tit", 11),
        ("a tit", 12),
    ]
    settings = out.recipes[0].settings
    assert settings is not None
    assert (settings["num_steps"], settings["guidance_scale"], settings["eta"]) == (3, 1.5, 0.0)


def test_the_weight_of_papers_is_the_scale_less_one(pipe: RetrievalPipeline) -> None:
    by_scale = pipe("an owl", guidance_scale=2.5, **QUICK)
    by_weight = pipe("an owl", guidance_weight=1.5, **QUICK)
    assert by_scale.recipes == by_weight.recipes
    with pytest.raises(UsageError, match="both given"):
        pipe("an owl", guidance_scale=2.5, guidance_weight=1.5, **QUICK)


def test_a_generator_that_has_drawn_is_refused(pipe: RetrievalPipeline) -> None:
    generator = torch.Generator().manual_seed(5)
    first = pipe("an owl", generator=generator, **QUICK)
    assert first.recipes[0].seed == 5
    torch.rand(1, generator=generator)
    with pytest.raises(UsageError, match="has drawn numbers already") as error:
        pipe("an owl", generator=generator, **QUICK)
    assert "seeds=[5]" in error.value.fix


def test_output_types_hold_the_same_pictures(pipe: RetrievalPipeline, model: Model) -> None:
    pil = pixels(pipe("an owl", **QUICK).images).astype(np.float32) / 255
    array = pipe("an owl", output_type="np", **QUICK).images
    tensor = pipe("an owl", output_type="pt", **QUICK).images
    (latents,) = pipe("an owl", output_type="latent", return_dict=False, **QUICK)
    assert np.array_equal(array, pil)
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), pil)
    decoded = model.generator.preview(latents)
    assert np.abs(decoded.astype(int) - (pil * 255).round().astype(int)).max() <= 1
    with pytest.raises(UsageError, match="no output type 'webp'"):
        pipe("an owl", output_type="webp", **QUICK)  # type: ignore[arg-type]


def test_a_callback_sees_each_step_and_ends_the_drawing(pipe: RetrievalPipeline) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def watch(given: RetrievalPipeline, step: int, t: None, tensors: dict[str, Any]) -> None:
        seen.append((step, tuple(tensors["x0"].shape)))
        given.interrupt = len(seen) == 3

    settings = {"batch_size": 1}
    out = pipe("an owl", seeds=[1, 2, 3], settings=settings, callback_on_step_end=watch, **QUICK)
    # The first picture is done; the second ended in its first step.
    assert [(step, shape[0]) for step, shape in seen] == [(0, 1), (1, 1), (0, 1)]
    assert (out.interrupted, [recipe.seed for recipe in out.recipes]) == (True, [1])
    # The next call is not interrupted.
    assert not pipe("an owl", **QUICK).interrupted
    with pytest.raises(UsageError, match="no tensor 'latents'"):
        pipe("an owl", callback_on_step_end_tensor_inputs=["latents"], **QUICK)


def test_pictures_patches_classes_and_neighbors_are_queries(
    pipe: RetrievalPipeline, database: RetrievalDatabase
) -> None:
    picture = database.pixels(np.array([3]))[0]
    kinds = [
        pipe(image=picture, **QUICK),
        pipe(patch=3, **QUICK),
        pipe(class_name="owl", **QUICK),
        pipe(neighbors=[3, 4, 5], num_inference_steps=1),
    ]
    queries = [out.recipes[0].query for out in kinds]
    assert [query.kind for query in queries if query is not None] == [
        "image",
        "patch",
        "class",
        "neighbors",
    ]
    assert kinds[0].neighbors[0][0].patch_id == 3
    assert [credit.patch_id for credit in kinds[3].neighbors[0]] == [3, 4, 5]


def test_two_databases_are_named_in_credits(
    model: Model, database: RetrievalDatabase, other: RetrievalDatabase
) -> None:
    pipe = RetrievalPipeline(model, {"birds": database, "other": other})
    out = pipe("an owl", database_weights={"birds": 1, "other": 1}, **QUICK)
    assert sorted(credit.database for credit in out.neighbors[0]) == ["birds", "other"]
    assert [one.name for one in out.recipes[0].databases] == ["birds", "other"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "nothing to sample"),
        ({"prompt": ""}, "the text is empty"),
        ({"prompt": "an owl", "weights": {3: 5}}, "less than or equal to 4"),
        ({"prompt": "an owl", "scheduler": "magic"}, "settings.sampler"),
        ({"prompt": "an owl", "exclude": ["nobody.jpg"]}, "no patch has it"),
    ],
)
def test_what_a_call_cannot_mean_is_refused(
    pipe: RetrievalPipeline, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pipe(**call, **QUICK)


def test_a_removed_patch_is_refused(pipe: RetrievalPipeline) -> None:
    with pytest.raises(DatabaseError, match="patch ids run"):
        pipe(neighbors=[9999], num_inference_steps=1)


def test_a_saved_pipeline_opens_in_three_ways_and_draws_the_same(
    pipe: RetrievalPipeline, database: RetrievalDatabase, tmp_path: Path
) -> None:
    import diffusers

    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    expected = pixels(pipe("an owl", seeds=[4], **QUICK).images)

    ours = RetrievalPipeline.from_pretrained(folder, database, device="cpu")
    assert np.array_equal(pixels(ours("an owl", seeds=[4], **QUICK).images), expected)

    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline="pipeline", trust_remote_code=True, low_cpu_mem_usage=False
    )
    drawn = theirs("an owl", database=database, seeds=[4], **QUICK)
    assert np.array_equal(pixels(drawn.images), expected)

    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(
        str(folder), subfolder="unet", low_cpu_mem_usage=False
    )
    weights = pipe.model.generator.network.state_dict()
    assert all(torch.equal(weights[f"unet.{name}"], w) for name, w in unet.state_dict().items())

    with pytest.raises(StorageError, match="exists already"):
        pipe.save_pretrained(folder)


def test_a_database_is_opened_by_the_address_that_was_noted_while_it_is_the_same(
    model: Model, database: RetrievalDatabase, tmp_path: Path
) -> None:
    shutil.copytree(database.folder.local(""), tmp_path / "shared" / "db")
    beside = RetrievalDatabase.open(str(tmp_path / "shared" / "db"))
    pipe = RetrievalPipeline(model, beside)
    pipe.save_pretrained(tmp_path / "shared" / "model", default_database=True)
    assert str(tmp_path) not in (tmp_path / "shared" / "model" / "model.json").read_text()

    # Both are copied together.
    shutil.copytree(tmp_path / "shared", tmp_path / "moved")
    opened = RetrievalPipeline.from_pretrained(tmp_path / "moved" / "model", device="cpu")
    expected = pipe("an owl", seeds=[4], **QUICK)
    assert np.array_equal(
        pixels(opened("an owl", seeds=[4], **QUICK).images), pixels(expected.images)
    )

    root = str(tmp_path / "moved" / "db")
    gone = expected.neighbors[0][0].image_id
    run_build(update_builder(root, Removal(frozenset([gone]))), ComputeConfig(dask="inline"))
    with pytest.raises(DatabaseError, match="which is at version 2") as error:
        RetrievalPipeline.from_pretrained(tmp_path / "moved" / "model", device="cpu")
    assert root in error.value.fix
    named = RetrievalPipeline.from_pretrained(tmp_path / "moved" / "model", root, device="cpu")
    assert gone not in {one.image_id for one in named("an owl", **QUICK).neighbors[0]}


def test_a_pipeline_without_a_database_has_none_to_note(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no database to note"):
        RetrievalPipeline(model).save_pretrained(tmp_path / "saved", default_database=True)
    assert not (tmp_path / "saved").exists()


def test_the_type_decides_what_is_computed_in_and_is_recorded(
    model: Model, database: RetrievalDatabase
) -> None:
    drawn = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        pipe = RetrievalPipeline.from_pretrained(model.directory, database, "cpu", dtype)
        out = pipe("an owl", output_type="latent", **QUICK)
        assert out.recipes[0].software.precision == name
        drawn[name] = out.images
    difference = (drawn["fp32"] - drawn["bf16"]).abs().max().item()
    assert 0 < difference < 0.2
    with pytest.raises(UsageError, match=r"do not compute in torch\.float64"):
        RetrievalPipeline.from_pretrained(model.directory, database, "cpu", torch.float64)


def test_the_saved_scheduler_has_the_models_noise_and_steps(
    pipe: RetrievalPipeline, tmp_path: Path
) -> None:
    import diffusers

    pipe.save_pretrained(tmp_path / "saved")
    scheduler: Any = diffusers.DDIMScheduler.from_pretrained(
        str(tmp_path / "saved"), subfolder="scheduler"
    )
    process = pipe.model.generator.head.process  # type: ignore[union-attr]
    assert torch.allclose(
        scheduler.alphas_cumprod.double(), process.schedule.alphas_cumprod, rtol=1e-4
    )
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == process.timesteps(20).tolist()[::-1]
