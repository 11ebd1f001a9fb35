import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rdm.encoders.image_tower import FEATURE_DIM, NUM_CLASSES
from rdm.encoders.projection_heads import HeadsConfig, load_heads
from rdm.encoders.text_tower import HIDDEN_DIM
from rdm.generators.provenance import Provenance
from rdm.storage import Folder
from rdm.training.data.contrastive_features import FeatureCache
from rdm.training.objectives.contrastive import (
    ContrastiveConfig,
    ContrastiveData,
    ContrastiveObjective,
    held_out_keys,
)

HEADS = HeadsConfig(hidden_dim=32, embedding_dim=48, naming_dim=16, text_layers=(6,), dropout=0)
CONFIG = ContrastiveConfig(heads=HEADS, num_validation=4, num_test=4)


def write_cache(folder: Path, num_pictures: int = 32) -> ContrastiveData:
    """Write two shards of related random image and text features."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(num_pictures, 1, HIDDEN_DIM)).astype(np.float16)
    text = shared + 0.1 * rng.normal(size=(num_pictures, 5, HIDDEN_DIM)).astype(np.float16)
    image = np.zeros((num_pictures, 3, FEATURE_DIM), np.float16)
    image[..., :HIDDEN_DIM] = shared + 0.1 * rng.normal(size=(num_pictures, 3, HIDDEN_DIM)).astype(
        np.float16
    )
    keys = np.array([f"photo{number:04d}" for number in range(num_pictures)])
    for stem, rows in (("00000", slice(0, 20)), ("00001", slice(20, None))):
        np.savez(folder / f"{stem}.npz", keys=keys[rows], image=image[rows], text=text[rows])
    np.savez(
        folder / "classes.npz", text=rng.normal(size=(NUM_CLASSES, HIDDEN_DIM)).astype(np.float16)
    )
    cache = FeatureCache(Folder(str(folder)), {"00000": "1", "00001": "2"})
    return ContrastiveData(
        "webdataset:///photos", cache, [np.arange(20), np.arange(num_pictures - 20)]
    )


def batch_of(data: ContrastiveData) -> dict[str, torch.Tensor]:
    shards = [data.load_shard(index) for index in range(len(data.shards))]
    return {
        name: torch.from_numpy(np.concatenate([shard[name] for shard in shards]))
        for name in ("image", "text")
    }


def built(data: ContrastiveData, config: ContrastiveConfig = CONFIG) -> ContrastiveObjective:
    torch.manual_seed(0)
    return ContrastiveObjective(config, data)


def test_a_run_records_which_photographs_it_learns_from(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    assert built(data).provenance == Provenance(
        source="webdataset:///photos", photographs_digest=data.cache.digest
    )


def test_another_tar_of_the_same_name_has_another_digest(tmp_path: Path) -> None:
    cache = write_cache(tmp_path).cache
    assert FeatureCache(cache.folder, {"00000": "1", "00001": "2"}).digest == cache.digest
    assert FeatureCache(cache.folder, {"00000": "1", "00001": "3"}).digest != cache.digest


def test_untrained_loss_is_near_the_logarithm_of_the_batch(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    objective = built(data)
    torch.nn.init.zeros_(objective.logit_scale)
    metrics = objective(batch_of(data), torch.Generator().manual_seed(0))
    assert metrics["loss"].item() == pytest.approx(math.log(32), abs=0.3)


def test_same_generator_gives_the_same_loss(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    objective = built(data)
    batch = batch_of(data)
    first, second, other = (
        objective(batch, torch.Generator().manual_seed(seed))["loss"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_heads_and_temperature_train_and_nothing_else(tmp_path: Path) -> None:
    objective = built(write_cache(tmp_path))
    assert {name.split(".")[0] for name, parameter in objective.named_parameters()} == {
        "heads",
        "logit_scale",
    }


def test_a_few_steps_learn_the_pairs(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    objective = built(data)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        metrics = objective(batch_of(data), generator)
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
    assert float(metrics["accuracy"]) == 1.0


def test_without_caption_mixing_a_text_is_one_of_the_captions(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    objective = built(data, CONFIG.with_overrides(["caption_mixing=0"]))
    text = batch_of(data)["text"]
    picked = objective._caption(text, torch.Generator().manual_seed(0))
    assert (picked[:, None] == text.float()).all(dim=2).any(dim=1).all()


def test_exported_directory_opens_with_the_given_state(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    objective = built(data)
    state = {
        name: torch.full_like(parameter, 0.25) for name, parameter in objective.named_parameters()
    }
    (tmp_path / "model").mkdir()
    objective.export(tmp_path / "model", state)
    heads = load_heads(tmp_path / "model")
    assert float(heads.image_head.linear.weight.detach().unique()) == 0.25
    assert torch.equal(heads.naming_basis, objective.heads.naming_basis.half().float())


def test_held_out_pictures_are_disjoint_and_do_not_depend_on_the_order_of_keys() -> None:
    keys = [f"photo{number}" for number in range(100)]
    validation, test = held_out_keys(keys, CONFIG)
    assert not set(validation) & set(test)
    assert (len(validation), len(test)) == (4, 4)
    assert held_out_keys(keys[::-1], CONFIG) == (validation, test)


def test_more_validation_pictures_leave_the_test_pictures_alone() -> None:
    keys = [f"photo{number}" for number in range(100)]
    assert (
        held_out_keys(keys, CONFIG)[1]
        == held_out_keys(keys, CONFIG.with_overrides(["num_validation=40"]))[1]
    )


def test_shards_hold_the_training_rows_alone(tmp_path: Path) -> None:
    data = replace(write_cache(tmp_path), rows=[np.array([3, 5]), np.array([], np.int64)])
    assert [shard.num_samples for shard in data.shards] == [2, 0]
    assert np.array_equal(data.load_shard(0)["text"], data.cache.load(0)["text"][[3, 5]])


def write_rank_gradient(rank: int, folder: Path) -> None:
    """Compute the gradient of one of two ranks and average it, as the training engine does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    cache = FeatureCache(Folder(str(folder)), {"00000": "1", "00001": "2"})
    data = ContrastiveData("webdataset:///photos", cache, [np.arange(20), np.arange(12)])
    objective = built(data)
    share = {name: value[rank * 16 : (rank + 1) * 16, :1] for name, value in batch_of(data).items()}
    objective(share, torch.Generator().manual_seed(0))["loss"].backward()
    gradients = {
        name: parameter.grad
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    for gradient in gradients.values():
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    torch.save(gradients, folder / f"gradient{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_average_to_the_gradient_of_one(tmp_path: Path) -> None:
    data = write_cache(tmp_path)
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)
    ]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    objective = built(data)
    whole = {name: value[:, :1] for name, value in batch_of(data).items()}
    objective(whole, torch.Generator().manual_seed(0))["loss"].backward()
    shared = torch.load(tmp_path / "gradient0.pt", weights_only=True)
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(shared[name], parameter.grad, rtol=1e-3, atol=1e-6)


if __name__ == "__main__":
    write_rank_gradient(int(sys.argv[1]), Path(sys.argv[2]))
