"""Names are bytes: the same photographs under the same ids, whatever the locale of the process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rdm.sources.file_names import file_below, is_hidden, text_of_name, text_of_path

LIST = """
import json, sys
from pathlib import Path
from rdm.sources import FetchConfig, QuerySet, QuerySetConfig, open_source
from rdm.sources.open import absolute_spec
spec = absolute_spec(sys.argv[1])
source = open_source(spec)
taken = source.take(source.listing().to_pylist(), Path(sys.argv[2]), FetchConfig())
rows = [row for row, _ in taken]
queries, failures = QuerySet(QuerySetConfig(source=spec)), []
crops = [crop.image_id for stem in queries.stems for crop in queries.crops(stem, failures)]
again = open_source(absolute_spec(source.spec)).listing().num_rows
ledger = {row["image_id"]: row["error_message"] or row["sha256"] for row in rows}
encoding = sys.getfilesystemencoding()
print(json.dumps([spec, source.spec, ledger, sorted(set(crops)), failures, again, encoding]))
"""


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a locale whose names are ISO-8859-1, made on the spot."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") is None:
        pytest.skip("localedef, which makes locales, is not installed")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the sources of the locale en_US are not installed")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


def listed(spec: bytes, scratch: Path, environment: dict[str, str]) -> list[object]:
    """Return what a process of a locale finds under a specification."""
    settings = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **environment}
    command = [os.fsencode(sys.executable), b"-c", LIST.encode(), spec, os.fsencode(scratch)]
    done = subprocess.run(command, env=settings, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path, encoded: Callable[..., bytes]) -> bytes:
    """A folder whose name and files have names of several scripts, and one that is no UTF-8."""
    root = os.fsencode(tmp_path) + "/写真 é".encode()
    names = [
        b"a.jpg",
        "写真.jpg".encode(),
        "鳥/é.jpg".encode(),
        "cafe\u0301.jpg".encode(),
        b"caf\xe9.jpg",
    ]
    for number, name in enumerate(names):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded(number))
    return root


IDS = ["a.jpg", r"caf\xe9.jpg", "cafe\u0301.jpg", "写真.jpg", "鳥/é.jpg"]


def test_folder_is_read_in_a_locale_of_ascii(tmp_path: Path, folder: bytes) -> None:
    spec = f"folder://{folder.decode()}"
    found = listed(spec.encode(), tmp_path / "s", {"LC_ALL": "C"})
    ledger = found[2]
    assert isinstance(ledger, dict)
    assert sorted(ledger) == sorted(IDS)
    assert all(len(digest) == 64 for digest in ledger.values())
    assert found == [spec, spec, ledger, sorted(IDS), [], len(IDS), "ascii"]


@pytest.mark.slow
def test_folder_is_the_same_in_every_locale(
    tmp_path: Path, folder: bytes, latin: dict[str, str]
) -> None:
    spec = b"folder://" + folder
    found = [
        listed(spec, tmp_path / "s", locale)
        for locale in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}, latin)
    ]
    assert [result.pop() for result in found] == ["utf-8", "ascii", "iso8859-1"]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == spec.decode()
    assert found[0][3:] == [sorted(IDS), [], len(IDS)]


@pytest.mark.slow
def test_tars_are_the_same_in_every_locale(
    tmp_path: Path, encoded: Callable[..., bytes], latin: dict[str, str]
) -> None:
    root = tmp_path / "鳥"
    root.mkdir()
    for number, name in enumerate(("写", "é")):
        (root / "p.jpg").write_bytes(encoded(number))
        with tarfile.open(
            root / f"{name}.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf-8"
        ) as tar:
            tar.add(root / "p.jpg", f"{name}真.jpg")
    spec = f"webdataset://{root}".encode()
    found = [
        listed(spec, tmp_path / "s", locale)
        for locale in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}, latin)
    ]
    assert [result.pop() for result in found] == ["utf-8", "ascii", "iso8859-1"]
    assert found[0] == found[1] == found[2]
    assert found[0][3:] == [["é真", "写真"], [], 2]


@pytest.mark.slow
def test_results_are_shown_in_a_terminal_of_another_script(tmp_path: Path, folder: bytes) -> None:
    os.rename(folder, os.fsencode(tmp_path) + "/写".encode())
    settings = {
        **os.environ,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
        "COLUMNS": "300",
    }
    source = f"folder://{tmp_path}/写".encode()
    arguments = [
        b"database",
        b"build",
        b"--root",
        os.fsencode(tmp_path / "db"),
        b"--source",
        source,
        b"--dry-run",
    ]
    command = [b"-c", b"from rdm.cli import main; main()", *arguments, b"--trial", b"0"]
    done = subprocess.run(
        [os.fsencode(sys.executable), *command], env=settings, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert rb"/\u5199" in done.stdout


def test_name_that_looks_like_an_escape_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / r"caf\xe9.jpg").write_bytes(b"literal")
    assert file_below(tmp_path, r"caf\xe9.jpg") == os.fsencode(tmp_path) + rb"/caf\xe9.jpg"
    (tmp_path / r"caf\xe9.jpg").unlink()
    assert file_below(tmp_path, r"caf\xe9.jpg") == os.fsencode(tmp_path) + b"/caf\xe9.jpg"


def test_text_of_a_path_is_its_own_text(tmp_path: Path) -> None:
    for name in ("é", "写", "a"):
        (tmp_path / name).mkdir()
        assert text_of_path(text_of_path(f"{tmp_path}/{name}")) == f"{tmp_path}/{name}"
    assert text_of_name(b"a\xff") == r"a\xff"


@pytest.mark.parametrize(
    ("name", "hidden"),
    [(".x", True), ("._x.jpg", True), ("lost+found", True), ("__MACOSX", True), ("x.", False)],
)
def test_hidden_names(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden
