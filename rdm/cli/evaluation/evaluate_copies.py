"""`rdm evaluate-copies`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, JsonFlag, SetOption, in_range, show, show_rows

if TYPE_CHECKING:
    from rdm.evaluation.copies.copy_record import Copies
    from rdm.evaluation.metrics.intervals import Share


def register(app: App) -> None:
    """Add the command."""
    app.command(evaluate_copies, name="evaluate-copies")


def evaluate_copies(
    *,
    model: Annotated[str, Parameter(help="assets://NAME, or a `model` folder")],
    trained_on: Annotated[str, Parameter(help="photographs that training saw, such as its tars")],
    held_out: Annotated[
        str, Parameter(help="photographs of the same kinds that no training has seen")
    ],
    samples: Annotated[int, Parameter(help="drawn, at most", validator=in_range(20))] = 256,
    compared: Annotated[
        int, Parameter(help="photographs of each side, at most", validator=in_range(20))
    ] = 1000,
    seed: Annotated[int, Parameter(help="of photographs and samples", validator=in_range(0))] = 0,
    encoder: Annotated[
        str | None,
        Parameter(
            help="the model's encoder, where it is no longer at the place that the model names"
        ),
    ] = None,
    out: Annotated[Path, Parameter(help="folder for copies.json and nearest.png")] = Path("copies"),
    set_: SetOption = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Search samples for copies of training photographs, with a detector whose power is measured.

    Half of the held-out photographs are looked at, and samples are compared with the other half and
    with as many of training: where nothing is remembered, the nearest is one of training in half of
    the cases. Planted copies say what the detector finds. --set takes the settings of `rdm sample`.
    The same command again goes on where it was stopped.

    Example: rdm evaluate-copies --model run/model --trained-on webdataset://training --held-out
        webdataset://held-out --out copies
    """
    from rdm.evaluation.copies.copy_detection import GRID, evaluate_copies
    from rdm.evaluation.copies.copy_record import CopyConfig, CopyInputs
    from rdm.sampling import SampleSettings

    config = CopyConfig(
        num_samples=samples,
        num_compared=compared,
        seed=seed,
        settings=SampleSettings().with_overrides(set_ or []),
    )
    inputs = CopyInputs(model, trained_on, held_out, encoder)
    result = evaluate_copies(inputs, config, out, device)
    if json:
        show(result.model_dump(mode="json"), as_json=True)
        return
    _show(result, out / GRID)


def _show(result: Copies, grid: Path) -> None:
    cells = [[row.kind, _in_words(row.found)] for row in result.planted]
    show_rows(["planted copies of training", "found"], cells, title="the detector's power")

    # Photographs beside samples: what the detector says without any model.
    near, real = result.nearest_in_training, result.photographs_nearest_in_training
    pull = result.pull_of_first_neighbor
    facts = {
        "samples that match a training photograph": _in_words(result.copies_of_training),
        "that match a held-out one": _in_words(result.copies_of_held_out),
        "photographs that match one of training": _in_words(result.photographs_flagged),
        "nearest is of training, 0.5 expected": f"{_in_words(near.share)} p {near.p_value:.3f}",
        "the same of photographs": f"{_in_words(real.share)} p {real.p_value:.3f}",
        "nearer to the first neighbor than the truth": _in_words(result.nearer_than_truth),
        "pull of the first neighbor": f"{pull.mean:.3f} [{pull.low:.3f}, {pull.high:.3f}]",
        "samples": result.num_samples,
        "photographs of each side": result.num_compared,
        "grid": grid,
        "device": result.device,
    }
    show(facts, as_json=False, title="measured")


def _in_words(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
