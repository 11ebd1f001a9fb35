"""`rdm database export` and `import`: to and from other tools' layouts."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from rdm.cli.console import DryRunFlag, JsonFlag, SetOption, show
from rdm.cli.database.options import Root


def register(database: App) -> None:
    """Add the commands to `rdm database`."""
    database.command(export)
    database.command(import_, name="import")


def export(
    *,
    root: Root,
    to: Annotated[Literal["clip-retrieval", "datasets", "npz"], Parameter(help="whose layout")],
    out: Annotated[str, Parameter(help="a new folder, or one that a killed export left")],
    images: Annotated[
        bool,
        Parameter(
            negative="--no-images",
            help="for datasets: each patch's pixels as PNG, beside its embedding",
        ),
    ] = True,
    version: Annotated[
        int | None,
        Parameter(
            help="an older version, such as one whose export was killed; by default the newest"
        ),
    ] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write the living patches of a database for other tools. The same command again resumes, or
    does nothing.

    clip-retrieval: its embedding folder, img_emb/*.npy and metadata/*.parquet (its server needs no
    export: it reads the database as it is). datasets: Parquet that datasets.load_dataset("parquet",
    data_dir=...) opens. npz: parts as the official RDM release has them.

    Example: rdm database export --root birds --to datasets --out birds-parquet
    """
    from rdm.database import RetrievalDatabase
    from rdm.database.exchange.export_database import export_database, export_plan

    database = RetrievalDatabase.open(root, version=version)
    if dry_run:
        plan = export_plan(database, to, images=images)
        show(
            {"root": root, "would": "export", "out": out, **plan.to_json()},
            as_json=json,
            title="plan",
        )
        return
    show(export_database(database, to, out, images=images).to_json(), as_json=json, title="export")


def import_(
    folder: Annotated[str, Parameter(help="the folder with the embeddings")],
    *,
    from_: Annotated[
        Literal["clip-retrieval", "rdm-npz"], Parameter(name="--from", help="whose layout")
    ],
    root: Root,
    encoder: Annotated[
        str,
        Parameter(
            help="the encoder that made the embeddings, e.g. open_clip:ViT-B-32-quickgelu/openai"
        ),
    ],
    photographs: Annotated[
        str, Parameter(help="source of photographs to check the encoder on, e.g. folder:///photos")
    ] = "",
    set_: SetOption = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Make a database of embeddings that were computed elsewhere. The same command again resumes,
    or does nothing.

    It has no pixels: search, neighbors and conditioning work, galleries cannot show patches. The
    encoder must be named, for only its texts and pictures can be compared with the vectors;
    --photographs checks it on a sample.

    Example: rdm database import laion --from clip-retrieval --root birds --encoder
        open_clip:ViT-B-32-quickgelu/openai
    """
    from rdm.database.exchange.import_embeddings import ImportConfig, import_database, import_plan

    config = ImportConfig(format=from_, folder=folder, encoder=encoder, photographs=photographs)
    config = config.with_overrides(set_ or [])
    if dry_run:
        show(
            {"root": root, "would": "import", **import_plan(config).to_json()},
            as_json=json,
            title="plan",
        )
        return
    show({"root": root, **import_database(root, config).to_json()}, as_json=json, title="database")
