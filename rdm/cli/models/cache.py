"""`rdm cache build`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from cyclopts import App, Parameter

from rdm.cli.console import DaskOption, DeviceOption, DryRunFlag, JsonFlag, SetOption, show
from rdm.errors import UsageError


def register(app: App) -> None:
    """Add the command."""
    cache = App(name="cache", help="Precompute first-stage latents for training.")
    cache.command(build)
    cache.command(annotate)
    app.command(cache)


def build(
    *,
    queries: Annotated[
        str, Parameter(help="source of the photographs; cut as `rdm neighbors build` cuts them")
    ],
    out: Annotated[str, Parameter(help="folder of the cache")],
    autoencoder: Annotated[
        str,
        Parameter(
            help="an asset, a diffusers autoencoder's folder, or none: the pictures themselves"
        ),
    ] = "assets://autoencoder-kl-f4",
    inline_neighbors: Annotated[
        str | None,
        Parameter(
            help="a database whose neighbor embeddings are stored in the cache too, for "
            "remote storage"
        ),
    ] = None,
    set_: SetOption = None,
    dask: DaskOption = "local",
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> int:
    """Encode a query set with the first stage into WebDataset tars.

    Example: rdm cache build --queries folder:///photos --out cache

    A photograph that is not usable is left out; `cache.json` says which and why, and the exit code
    is 3. The same command again encodes what could not be read and now can be.

    With --inline-neighbors DB training reads embeddings from the cache instead of the database's
    memory maps: for caches on object storage. Run it again after an update of the database: it
    writes what changed.
    """
    from rdm.compute import ComputeConfig, compute_pool
    from rdm.sources import QuerySet
    from rdm.sources.causes import cause_of
    from rdm.training.data.inlined_neighbors import inline_neighbors as inline
    from rdm.training.data.latent_cache import build_cache
    from rdm.training.presets import cache_config

    config = cache_config(queries, autoencoder).with_overrides(set_ or [])

    # What would be encoded: listed, not decoded.
    if dry_run:
        found = QuerySet(config.queries)
        show(
            {
                "out": out,
                "would": "encode",
                "photographs": found.listing.num_rows,
                "shards": len(found.stems),
                "inline_neighbors": inline_neighbors,
                "config": config.model_dump(mode="json"),
            },
            as_json=json,
        )
        return 0

    with compute_pool(ComputeConfig(dask=dask, device=device)) as pool:
        info = build_cache(out, config, pool)

        # Photographs that failed, by cause: a hundred of one cause are one problem.
        causes = Counter(cause_of(reason) for _, reason in info.failures)
        result = {"out": out, "latents": info.num_latents, "shards": len(info.stems)}
        result |= {
            "failures": len(info.failures),
            "causes": dict(causes),
            "device": pool.describe_device(),
        }

        # Training can then do without the database.
        if inline_neighbors is not None:
            inlined = inline(out, inline_neighbors, pool)
            result |= {
                "inlined_neighbors": inlined.k_stored,
                "database_version": inlined.database_version,
            }
    show(result, as_json=json, title="cache")
    return 3 if info.failures else 0


def annotate(
    *,
    cache: Annotated[str, Parameter(help="folder of a finished cache")],
    with_: Annotated[
        Literal["captions", "classes"], Parameter(name="--with", help="what is stored")
    ] = "captions",
    set_: SetOption = None,
    dask: DaskOption = "local",
    json: JsonFlag = False,
) -> None:
    """Store what files beside a cache's photographs say of them: their captions, as token states,
    or their classes.

    Example: rdm cache annotate --cache cache --set captions=2

    Example: rdm cache annotate --cache cache --with classes

    Recipes that read text or a class need it. In tars captions are in KEY.json (`captions` or
    `caption`) or KEY.txt, one a line; in folders in PHOTO.txt. A class is the number in KEY.cls, or
    the folder. A photograph without any says nothing. Run the same command again after the cache
    has grown: it writes what is missing.
    """
    from rdm.compute import ComputeConfig, compute_pool
    from rdm.training.data.class_annotation import annotate_classes
    from rdm.training.data.text_annotation import TextAnnotationConfig, annotate_text

    # Classes are read from the source's listing: options of the workers would say nothing.
    if with_ == "classes":
        if set_:
            raise UsageError("classes have no settings", where="--set", fix="leave --set out")
        if dask != "local":
            raise UsageError(
                "classes are read here, by no worker", where="--dask", fix="leave --dask out"
            )
        found = annotate_classes(cache)
        facts = {"cache": cache, "photographs": found.num_labelled, "classes": list(found.names)}
        show(facts, as_json=json, title="classes")
        return

    # Captions pass through a text network, on workers.
    config = TextAnnotationConfig().with_overrides(set_ or [])
    with compute_pool(ComputeConfig(dask=dask, device="cpu")) as pool:
        info = annotate_text(cache, config, pool)
    facts = {
        "cache": cache,
        "photographs": info.num_photographs,
        "with_captions": info.num_captioned,
        "text_network": info.encoder_digest,
    }
    show(facts, as_json=json, title="captions")
