"""Commands of the documentation: `rdm` has each, with the options and settings that it names, and
they run, page after page, on a few small photographs."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import csv

from rdm.cli.main import build_app, run
from rdm.generators.sample_settings import SampleSettings
from rdm.recipes import RECIPES, recipe_config
from rdm.training.data.text_annotation import TextAnnotationConfig
from rdm.training.presets import cache_config

ROOT = Path(__file__).parent.parent
APP = build_app()
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def settings(*settings: str) -> tuple[str, ...]:
    """Return the words of settings."""
    return tuple(word for setting in settings for word in ("--set", setting))


SIZE = (300, 280)  # of photographs
CLASSES = ("forest", "harbor", "meadow", "street", "desert", "river")
WNIDS = ("n01440764", "n01443537")
TINY_RUN = (
    "max_steps=2",
    "checkpoint_every=2",
    "log_every=1",
    "grids_per_decade=0",
    "num_ranks=1",
    "batch_size=2",
)
TINY_FIRST_STAGE = (
    "objective.start=random",
    "objective.network.block_out_channels=[8,8,16]",
    "objective.network.sample_size=32",
    "objective.photographs.image_size=32",
    "objective.photographs.held_out_fraction=0.3",
    "objective.adversarial.channels=8",
)

# Pages in the order of a reader who follows them in one folder; other pages have a folder each.
STORY = ("database", "training", "latents", "runs", "sampling", "evaluation", "updates", "interop")

# The reader's folders, and what the pages leave to her.
PLACEHOLDERS = {
    " 77": " 7",  # the reader has fewer patches
    " 78": " 8",
    "--centers 64": "--centers 3",
    ' --exclude-author "A. Bird"': "",  # her photographs have no authors
    "webdataset:///training/": "webdataset:///probe/",
    "webdataset:///training ": "webdataset:///captioned ",
    ":///": "://{inputs}/",
    "/photographs": "/training",
    "--since 12": "--since 1",
    "--seeds 0-15": "--seeds 0-1",
    "--seeds 0-63": "--seeds 0-1",
    "--seeds 0-7": "--seeds 0-1",
    "--seeds 0-49999 --dask 2": "--seeds 0-1",
    "--run OUT": "--run run",
    "--autoencoder vq-f4": "--autoencoder assets://autoencoder-vq-f4",
}

# What is added to the commands that begin like this, so that they are small.
INLINE = ("--dask", "inline")
ADDED: dict[str, tuple[str, ...]] = {
    "database build": INLINE,
    "database update": INLINE,
    "neighbors build": INLINE,
    "cache build": INLINE,
    "database build --root birds --source urls:": settings("fetch.allow_private_addresses=true"),
    "train": settings(*TINY_RUN),
    "train --recipe autoencoder-vq-f4": settings(*TINY_FIRST_STAGE),
    "deploy": ("--prefect-file", str(ROOT / "infra" / "prefect.yaml")),
    "sample": settings("num_steps=2"),
    "evaluate ": settings(
        "settings.num_steps=2", "num_draws=2", "num_samples=4", "num_reference=4"
    ),
    "evaluate-autoencoder": ("--num-images", "8"),
    "evaluate-recognition": settings("num_steps=2", "k=2"),
    "evaluate-recognition --model run/model --pictures webdataset:": ("--per-class", "2"),
}

# What the pages take for granted.
BEFORE = {
    "sample --model run/model --database birds=0.7": "rdm database build --root paintings "
    "--source folder:///photos",
    "neighbors build --root other": "rdm database build --root other --source folder:///photos",
}

# What is not run as it stands, and why; with `--dry-run` where that says what would be done.
NETWORK, TAKES_MINUTES = "it fetches from the public internet", "it takes minutes"
NOT_RUN = {
    "database build --root db --source folder:///photos --set encoder=open_clip:": NETWORK,
    "database import laion": NETWORK,  # the encoder's weights
    "database import oi-npz": NETWORK,
    "database build --root oi --source 'openimages:": NETWORK,
    "database build --root DB --source SPEC --dask tcp:": "it needs a Dask scheduler",
    "deploy": "it needs a Prefect server",
    "quickstart": TAKES_MINUTES,
    "serve": "it serves until it is ended; tests/serving starts it",
    "database search --root quick/": "it reads what the quickstart has made",
    "sample --model quick/": "it reads what the quickstart has made",
    "evaluate-copies": "it looks at a thousand pictures; tests/evaluation/copies runs it on fewer",
    "sample --c2pa-cert": "it needs the extra c2pa and a certificate",
    "cache build --queries SPEC": "it needs a first stage of the reader's own",
}
HAS_DRY_RUN = ("deploy", "quickstart")


def commands_of(page: Path) -> list[str]:
    """Return the commands in a page's blocks of code, those with a gap `...` left out."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("rdm ") and " ... " not in line]


def redirected(words: list[str]) -> tuple[list[str], str | None]:
    """Return a command's words without `> FILE`, and the file."""
    return (words[: words.index(">")], words[-1]) if ">" in words else (words, None)


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


def test_the_documentation_has_commands() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_and_its_settings_exist(command: str) -> None:
    tokens, _ = redirected(shlex.split(command, comments=True)[1:])
    function, bound, _ = APP.parse_args(tokens, exit_on_error=False, print_error=False)
    given, settings = bound.arguments, bound.arguments.get("set_") or []
    if function.__name__ == "train":
        recipe_config(given["recipe"]).with_overrides(settings)
    elif function.__name__ == "sample":
        SampleSettings().with_overrides(settings)
    elif function.__name__ == "annotate":
        TextAnnotationConfig().with_overrides(settings)
    elif tokens[:2] == ["cache", "build"]:
        cache_config("folder:///training").with_overrides(settings)


def test_every_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    families = re.findall(r"`autoencoder-\{kl,vq\}-f\{4,8,16\}-official`", text)
    missing = [name for name in RECIPES if f"`{name}`" not in text and not name.endswith("l")]
    assert families
    assert not missing


def add_members(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def labelled(encoded: Callable[..., bytes], seed: int, per_class: int) -> dict[str, bytes]:
    """Return pictures of two classes, with the number of each picture's class beside it."""
    members = {}
    for number in range(2 * per_class):
        members[f"{seed + number}.jpg"] = encoded(seed + number, size=SIZE)
        members[f"{seed + number}.cls"] = str(number % 2).encode()
    return members


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes]) -> Path:
    """What the reader has: photographs, some of them in tars with captions or classes."""
    folder = tmp_path_factory.mktemp("inputs")
    places = [f"photos/p{number:02d}.jpg" for number in range(14)]
    places += [f"training/{name}/{number}.jpg" for name in CLASSES for number in range(4)]
    places += [f"held-out/birds/{number}.jpg" for number in range(8)]
    for seed, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(encoded(seed, size=SIZE))
        if place.startswith("training"):
            (folder / place).with_suffix(".txt").write_text("an owl at night")
    for name in ("captioned", "probe", "lists"):
        (folder / name).mkdir()
    add_members(folder / "held-out" / "tiny.tar", labelled(encoded, 200, 4))
    add_members(folder / "held-out" / "scenes.tar", labelled(encoded, 300, 4))
    add_members(folder / "probe" / "scenes.tar", labelled(encoded, 400, 12))
    captioned = {}
    for number in range(16):
        captioned[f"{number:03d}.jpg"] = encoded(500 + number, size=SIZE)
        captioned[f"{number:03d}.txt"] = b"two dogs on a beach\nan owl at night"
    add_members(folder / "captioned" / "00000.tar", captioned)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def write_own_files(folder: Path, inputs: Path) -> None:
    """Write the small files that commands name beside the folders that they make."""
    (folder / "owl.jpg").write_bytes((inputs / "photos" / "p00.jpg").read_bytes())
    Image.linear_gradient("L").resize(SIZE).save(folder / "branch.png")
    (folder / "removed.txt").write_text("p05.jpg\n")
    (folder / "patches.txt").write_text("0\n")
    boxes = [f"p{number:02d}.jpg,0.1,0.8,0.2,0.9" for number in range(14)]
    rows = io.BytesIO("\n".join(["ImageID,XMin,XMax,YMin,YMax", *boxes]).encode())
    pq.write_table(csv.read_csv(rows), folder / "boxes.parquet")
    (folder / "scenes.json").write_text('["one", "two"]')
    (folder / "classes.json").write_text(
        json.dumps([{"label": i, "name": name, "wnid": name} for i, name in enumerate(WNIDS)])
    )


def small(command: str, inputs: Path) -> list[str]:
    """Return the words of a command of the documentation, small and with the reader's own files."""
    for placeholder, own in PLACEHOLDERS.items():
        command = command.replace(placeholder, own.format(inputs=inputs))
    words = shlex.split(command, comments=True)[1:]
    called = shlex.join(words)
    added = [word for begin, more in ADDED.items() if called.startswith(begin) for word in more]
    # A redirection stands at the end.
    end = words.index(">") if ">" in words else len(words)
    return [*words[:end], *added, *words[end:]]


def reason_not_to_run(command: str) -> str | None:
    """Return why a command is not run, or None."""
    beginnings = [begin for begin in NOT_RUN if command.startswith(f"rdm {begin}")]
    return NOT_RUN[beginnings[0]] if beginnings else None


def with_what_goes_before(commands: list[str]) -> Iterator[str]:
    """Yield commands, each after what its page takes for granted."""
    for command in commands:
        yield from (BEFORE[begin] for begin in BEFORE if command.startswith(f"rdm {begin}"))
        yield command


def follow(page: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the commands of a page in order, in this folder; return what went wrong."""
    failures = []
    for command in with_what_goes_before(commands_of(page)):
        words, shown = redirected(small(command, inputs))
        if reason_not_to_run(command):
            if words[0] not in HAS_DRY_RUN:
                continue
            words += [] if "--dry-run" in words else ["--dry-run"]

        # Pictures of another request are kept apart: as the error says, the folder is deleted.
        if words[0] == "sample" and "--out" not in words:
            shutil.rmtree("samples", ignore_errors=True)
        capsys.readouterr()
        code, printed = run(words), capsys.readouterr()
        if code:
            failures.append(f"{page.name}: {shlex.join(words)}\n{code}: {printed.err}")
        elif shown is not None:
            Path(shown).write_text(printed.out, encoding="utf-8")
    return failures


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reader_who_follows_the_pages_in_one_folder_meets_no_error(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_own_files(tmp_path, inputs)
    pages = [ROOT / "docs" / f"{name}.md" for name in STORY]
    failures = [failure for page in pages for failure in follow(page, inputs, capsys)]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem not in STORY and commands_of(page)],
    ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_for_itself_run(
    page: Path,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_own_files(tmp_path, inputs)
    with served(inputs) as url:
        rows = [f"{url}/photos/p{number:02d}.jpg" for number in range(6)]
        (inputs / "lists" / "birds.csv").write_text("\n".join(["url", *rows]))
        failures = follow(page, inputs, capsys)
        assert not failures, "\n".join(failures)


def test_each_reason_not_to_run_a_command_is_of_one() -> None:
    assert {reason_not_to_run(command) for command in COMMANDS} - {None} == set(NOT_RUN.values())
