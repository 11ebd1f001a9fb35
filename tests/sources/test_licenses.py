from __future__ import annotations

import pytest

from rdm.sources.licenses import license_of

BY = "https://creativecommons.org/licenses/by/2.0/"


@pytest.mark.parametrize(
    ("stated", "name", "url"),
    [
        (BY, "CC BY 2.0", BY),
        ("CC BY 2.0", "CC BY 2.0", BY),
        ("cc-by-2.0", "CC BY 2.0", BY),
        (
            "http://creativecommons.org/licenses/by-nc-sa/3.0/deed.de",
            "CC BY-NC-SA 3.0",
            "http://creativecommons.org/licenses/by-nc-sa/3.0/deed.de",
        ),
        ("CC BY-SA 4.0", "CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
        ("CC0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        (
            "https://creativecommons.org/publicdomain/mark/1.0/",
            "Public Domain Mark 1.0",
            "https://creativecommons.org/publicdomain/mark/1.0/",
        ),
        ("https://example.org/terms", "https://example.org/terms", "https://example.org/terms"),
        ("all rights reserved", "all rights reserved", ""),
        ("", "", ""),
        ("  ", "", ""),
    ],
)
def test_a_license_has_a_name_and_a_url(stated: str, name: str, url: str) -> None:
    assert license_of(stated) == (name, url)
