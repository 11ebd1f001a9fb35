import pytest
from pydantic import ValidationError

from rdm.serving.request import JobRequest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"texts": ["an owl", "a duck"]}, "2 are asked for"),
        ({}, "0 are asked for"),
        ({"images": ["/etc/hostname"]}, "give the id that POST /v1/uploads returned"),
        (
            {"texts": ["an owl"], "settings": {"autoguidance": "/home/other/model"}},
            "a client names no folder of the server's machine",
        ),
        ({"texts": ["an owl"], "start": {"image": "/etc/hostname"}}, "not by a server yet"),
        ({"texts": ["an owl"], "folder": "/"}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_client_may_not_ask_is_refused_by_name(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        JobRequest.model_validate(fields)
