from __future__ import annotations

from pathlib import Path

import pytest
from prefect.context import SettingsContext
from prefect.settings import Profile, Settings

from flows.work_pools import WorkPool, create_work_pools, read_deployments_file
from rdm.errors import RdmError, UsageError


def test_a_deployments_file_gives_its_pools_and_deployments(tmp_path: Path) -> None:
    path = tmp_path / "prefect.yaml"
    path.write_text(
        "work_pools: [{name: here, queues: {one: 1}}]\ndeployments: [{name: default}]\n"
    )
    assert read_deployments_file(path) == (
        [WorkPool(name="here", queues={"one": 1})],
        [{"name": "default"}],
    )


@pytest.mark.parametrize(
    "content",
    ["", "name: x", "deployments: [", "work_pools: [{name: a, type: docker}]\ndeployments: []"],
)
def test_what_is_no_deployments_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prefect.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match="this is no deployments file"):
        read_deployments_file(path)


def test_a_missing_deployments_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_deployments_file(tmp_path / "nope.yaml")
    assert caught.value.where == str(tmp_path / "nope.yaml")


def test_without_a_server_there_is_nothing_to_deploy_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with fresh_settings(), pytest.raises(UsageError, match="PREFECT_API_URL is not set"):
        create_work_pools([])


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with fresh_settings(), pytest.raises(RdmError, match="cannot be reached") as caught:
        create_work_pools([WorkPool(name="here")])
    assert caught.value.where == "http://127.0.0.1:9/api"


def fresh_settings() -> SettingsContext:
    """Return Prefect's settings as the environment has them now: it reads them once, at its
    import."""
    return SettingsContext(profile=Profile(name="test", settings={}), settings=Settings())
