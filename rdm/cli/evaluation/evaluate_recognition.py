"""`rdm evaluate-recognition`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, JsonFlag, SetOption, in_range, show, show_rows

if TYPE_CHECKING:
    from rdm.evaluation.metrics.intervals import Share
    from rdm.evaluation.recognition.recognition_record import Recognition


def register(app: App) -> None:
    """Add the command."""
    app.command(evaluate_recognition, name="evaluate-recognition")


PicturesOption = Annotated[
    str,
    Parameter(
        help="pictures that no training has seen; webdataset://DIR with KEY.jpg and KEY.cls for "
        "classes"
    ),
]
ClassesOption = Annotated[
    Path | None,
    Parameter(
        help="JSON list of names, or of {label, name, wnid}; without it, identification alone"
    ),
]
JudgeOption = Annotated[
    Literal["imagenet", "probe"],
    Parameter(
        help="imagenet: EfficientNet-Lite2, classes with `wnid`; probe: fitted to --probe-pictures"
    ),
]
ProbePicturesOption = Annotated[
    str | None, Parameter(help="labelled pictures of the same classes, others than --pictures")
]
PerClassOption = Annotated[int, Parameter(help="samples of each class", validator=in_range(1))]
QueriesOption = Annotated[
    int, Parameter(help="samples where there are no classes", validator=in_range(3))
]
ProbePerClassOption = Annotated[
    int,
    Parameter(
        help="pictures of a class that the probe is fitted to, at most", validator=in_range(5)
    ),
]
DistancesOption = Annotated[
    bool,
    Parameter(
        help="KID and FID of reconstructions and samples too, beside their floor; with Inception"
    ),
]
SeedOption = Annotated[int, Parameter(help="of contexts and samples", validator=in_range(0))]
EncoderOption = Annotated[
    str | None,
    Parameter(help="the model's encoder, where it is no longer at the place that the model names"),
]
OutOption = Annotated[Path, Parameter(help="folder for recognition.json and grid.png")]


def evaluate_recognition(
    *,
    model: Annotated[str, Parameter(help="assets://NAME, or a `model` folder")],
    pictures: PicturesOption,
    classes: ClassesOption = None,
    judge: JudgeOption = "imagenet",
    probe_pictures: ProbePicturesOption = None,
    per_class: PerClassOption = 10,
    queries: QueriesOption = 256,
    probe_per_class: ProbePerClassOption = 300,
    distances: DistancesOption = False,
    seed: SeedOption = 0,
    encoder: EncoderOption = None,
    out: OutOption = Path("recognition"),
    set_: SetOption = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Measure how many samples a judge recognizes that training never used, beside photographs and
    reconstructions.

    A sample is conditioned on k random pictures of one class; --set takes the settings of `rdm
    sample`, such as guidance_scale=2. The same command again goes on where it was stopped.

    Example: rdm evaluate-recognition --model run/model --pictures webdataset://held-out --classes
        classes.json --per-class 10 --out recognition
    """
    from rdm.evaluation.recognition.labelled import read_classes
    from rdm.evaluation.recognition.recognition import GRID, evaluate_recognition
    from rdm.evaluation.recognition.recognition_record import RecognitionConfig, RecognitionInputs
    from rdm.sampling import SampleSettings

    # Everything that decides the result, as the folder records it.
    config = RecognitionConfig(
        per_class=per_class,
        num_queries=queries,
        probe_per_class=probe_per_class,
        distances=distances,
        seed=seed,
        settings=SampleSettings(batch_size=32).with_overrides(set_ or []),
    )
    named = () if classes is None else read_classes(classes)
    inputs = RecognitionInputs(model, pictures, named, judge, probe_pictures, encoder)

    result = evaluate_recognition(inputs, config, out, device)
    if json:
        show(result.model_dump(mode="json"), as_json=True)
        return
    _show(result, out / GRID)


def _show(result: Recognition, grid: Path) -> None:
    if result.rows:
        cells = [
            [row.name, row.num_pictures or "", _in_words(row.top1), _in_words(row.top5)]
            for row in result.rows
        ]
        show_rows(["", "pictures", "top-1", "top-5"], cells, title=f"recognized by {result.judge}")

    # Whether the neighbors of a picture can be told from it.
    found = result.identification
    facts = {
        "samples / reconstructions": result.ratio,
        "identification AUC": f"{found.auc:.3f} [{found.auc_low:.3f}, {found.auc_high:.3f}]",
        "identification top-1": f"{_in_words(found.top1)} of {found.num_contexts}",
        "permutation p": found.p_value,
        **{f"{name}, distances": found.model_dump() for name, found in result.fidelity.items()},
        "grid": grid,
        "device": result.device,
    }
    show(facts, as_json=False, title="measured")


def _in_words(share: Share | None) -> str:
    if share is None:
        return ""
    return f"{share.value:.3f}" + (
        "" if share.low == share.high else f" [{share.low:.3f}, {share.high:.3f}]"
    )
