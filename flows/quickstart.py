"""The flow `quickstart`: everything, on the embedded photographs, ending with report.html."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.build_database import run_builder
from flows.evaluate import evaluate
from flows.measure import StageLog
from flows.progress import artifact_progress
from flows.quickstart_layout import Layout, QuickstartConfig
from flows.train import TrainRequest, run_train
from rdm.compute import Clusters, ComputeConfig
from rdm.database.building.builder import DatabaseBuilder
from rdm.database.building.jobs import build_config
from rdm.database.building.results import BuildResult
from rdm.evaluation.evaluate_model import Evaluation
from rdm.recipes import recipe_config
from rdm.report.data import Command
from rdm.report.quickstart.assemble import ReportInputs, assemble_report
from rdm.report.quickstart.report import write_report
from rdm.report.quickstart.showcase import ShowcaseInputs, draw_showcase
from rdm.report.run_card import write_run_card
from rdm.training.config import TrainInputs
from rdm.training.job.hostfile import Cluster
from rdm.training.presets import cache_config, query_config
from rdm.training.stats import StatsRow

# No photograph is in both halves: a query among its own neighbors would be copied.
DATABASE_HALF = "samples://openimages-birds/database"
QUERY_HALF = "samples://openimages-birds/queries"
PAINTINGS = "samples://met-paintings"
STAGES = (
    "ingest",
    "patchify",
    "embed",
    "index",
    "swapped database",
    "neighbors",
    "cache",
    "train",
    "sample",
    "evaluate",
)


@task(name="showcase", cache_policy=NO_CACHE)
def showcase_task(layout: Layout, config: QuickstartConfig) -> int:
    """Draw the pictures of the report; return how many there are."""
    objective = recipe_config(config.recipe).with_overrides(config.overrides).objective
    assert objective.kind == "generative"
    inputs = ShowcaseInputs(
        layout.run / "model",
        str(layout.database),
        str(layout.swapped),
        query_config(QUERY_HALF),
        objective.held_out_fraction,
    )
    return draw_showcase(inputs, config.showcase, layout.samples)


@task(name="report", cache_policy=NO_CACHE)
def report_task(layout: Layout, config: QuickstartConfig, evaluation: Evaluation) -> None:
    """Write report.html, and what was measured into the model's card."""
    log = StageLog(str(layout.stages))

    # Where each stage wrote, for its size.
    written = {
        "ingest": layout.database / "images",
        "patchify": layout.database / "patches",
        "embed": layout.database / "img_emb",
        "index": layout.database / "index",
        "neighbors": layout.database / "neighbors",
        "cache": layout.cache,
        "train": layout.run,
        "swapped database": layout.swapped,
        "sample": layout.samples,
        "evaluate": layout.evaluation,
    }

    records = map(log.read, STAGES)
    inputs = ReportInputs(
        database=str(layout.database),
        swapped=str(layout.swapped),
        run=layout.run,
        samples=layout.samples,
        queries=query_config(QUERY_HALF),
        showcase=config.showcase,
        evaluation=evaluation,
        stages=[record for record in records if record is not None],
        bytes_written={name: folder_bytes(path) for name, path in written.items()},
        commands=_commands(layout),
    )

    report = assemble_report(inputs)
    write_report(report, layout.report)
    write_run_card(layout.run, report.held_out, report.metrics)


def _commands(layout: Layout) -> list[Command]:
    """Return what a reader of the report may type next."""
    owl = '--text "an owl"'
    sample = f"rdm sample --model {layout.run}/model --database {layout.database} {owl}"
    search = f"rdm database search --root {layout.database} {owl} -k 8"
    return [
        Command(f"rdm quickstart --root {layout.root}", "everything on this page"),
        Command(sample, "more pictures"),
        Command(search, "what the network sees"),
    ]


@flow(name="quickstart", validate_parameters=True)
def quickstart(root: Path, config: QuickstartConfig) -> Evaluation:
    """Build, fine-tune, sample, measure and report; complete stages are passed over."""
    layout = Layout(root)
    stages = str(layout.stages)
    log = StageLog(stages)

    # Databases, latents and training share clusters, whose workers stay warm.
    with Clusters() as clusters:
        build, train = _flows_on(clusters)
        build(root=str(layout.database), source=DATABASE_HALF, stage_log=stages)
        with log.stage("swapped database") as facts:
            build(
                root=str(layout.swapped),
                source=PAINTINGS,
                stage_log=str(layout.stages / "swapped"),
            )
            embedded = StageLog(str(layout.stages / "swapped")).read("embed")
            facts["patches"] = embedded and embedded.facts.get("num_patches")

        train(
            inputs=TrainInputs(
                database=str(layout.database),
                source=QUERY_HALF,
                cache=str(layout.cache),
                out=str(layout.run),
            ),
            config=config,
            stage_log=stages,
        )

    # Pictures and measurements of the trained model.
    with artifact_progress(), log.stage("sample") as facts:
        facts["pictures"] = showcase_task(layout, config)
    with log.stage("evaluate") as facts:
        evaluation = evaluate(
            model=str(layout.run / "model"),
            database=str(layout.database),
            reference=QUERY_HALF,
            out=str(layout.evaluation),
            cache=str(layout.cache),
            overrides=list(config.evaluate),
        )
        facts["pictures"] = evaluation.config.num_samples

    report_task(layout, config, evaluation)
    return evaluation


def _flows_on(
    clusters: Clusters,
) -> tuple[Callable[..., BuildResult], Callable[..., StatsRow]]:
    """Return the flows that build a database and train, whose stages share clusters.

    Clusters are no parameter of a flow: Prefect would store them, and offer them to whoever starts
    a deployment.
    """

    # Clusters come by closure: an open one is no parameter that Prefect could store.
    @flow(name="build-database", validate_parameters=False)
    def build(root: str, source: str, stage_log: str) -> BuildResult:
        builder = DatabaseBuilder(root, build_config(source))
        return run_builder(builder, ComputeConfig(), StageLog(stage_log), clusters=clusters)

    @flow(name="train", validate_parameters=False)
    def train(inputs: TrainInputs, config: QuickstartConfig, stage_log: str) -> StatsRow:
        request = TrainRequest(
            config=recipe_config(config.recipe).with_overrides(config.overrides),
            inputs=inputs,
            cluster=Cluster(),
            name="train",
            latents=cache_config(QUERY_HALF, config.autoencoder),
            compute=ComputeConfig(),
        )
        return run_train(request, StageLog(stage_log), clusters)

    return build, train


def folder_bytes(path: Path) -> int:
    """Return the size of all files below a folder; hard links count once."""
    found = [file.stat() for file in path.rglob("*") if file.is_file()]
    # By inode: a file that has a second name by a hard link would count twice.
    files = {(status.st_dev, status.st_ino): status.st_size for status in found}
    return sum(files.values())
