from __future__ import annotations

import io
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image
from written_recipe import neighbor, recipe

from rdm.sampling.recipe.picture_file import png_bytes
from rdm.sampling.recipe.record import SampleRecord
from rdm.sampling.recipe.xmp import COMPOSITE, NAMESPACES, TRAINED_ALGORITHMIC_MEDIA, xmp_packet


def read_back(record: SampleRecord) -> minidom.Document:
    """Return the XMP of a PNG with a recipe, found by Pillow and parsed by another parser than the
    one that wrote it."""
    with Image.open(io.BytesIO(png_bytes(np.zeros((4, 4, 3), np.uint8), record))) as image:
        image.load()
        return minidom.parseString(image.info["xmp"])


def texts(document: minidom.Document, name: str) -> list[str]:
    prefix, local = name.split(":")
    found = document.getElementsByTagNameNS(NAMESPACES[prefix], local)
    return ["".join(child.data for child in one.childNodes if child.nodeType == 3) for one in found]


def test_a_picture_is_marked_as_made_by_a_trained_network() -> None:
    document = read_back(recipe())
    assert texts(document, "Iptc4xmpExt:DigitalSourceType") == [TRAINED_ALGORITHMIC_MEDIA]
    assert texts(document, "Iptc4xmpExt:AISystemUsed") == [
        "model (0123456789abcdef), retrieval-diffusion"
    ]
    assert texts(document, "Iptc4xmpExt:AISystemVersionUsed") == ["0.1.0"]
    assert texts(document, "Iptc4xmpExt:AIPromptInformation") == ["text: an owl"]
    assert texts(document, "dc:identifier") == [f"sha256:{'f' * 64}"]
    assert texts(document, "xmp:CreatorTool") == ["retrieval-diffusion 0.1.0"]


def test_who_asked_is_never_said() -> None:
    assert "AIPromptWriterName" not in xmp_packet(recipe())


def test_an_edit_of_a_picture_is_a_composite() -> None:
    document = read_back(
        recipe(start={"image": "owl.png", "image_sha256": "a" * 64, "strength": 0.5})
    )
    assert texts(document, "Iptc4xmpExt:DigitalSourceType") == [COMPOSITE]


def test_noise_between_two_seeds_is_no_edit() -> None:
    document = read_back(recipe(start={"towards": 5, "fraction": 0.5}))
    assert texts(document, "Iptc4xmpExt:DigitalSourceType") == [TRAINED_ALGORITHMIC_MEDIA]


def test_credits_alone_have_no_prompt() -> None:
    document = read_back(recipe().for_png("credits"))
    assert texts(document, "Iptc4xmpExt:AIPromptInformation") == []
    assert len(texts(document, "dc:rights")) == 1


def test_photographs_are_credited_in_the_fields_that_viewers_show() -> None:
    document = read_back(recipe(2))
    assert texts(document, "photoshop:Credit") == ["drawn from photographs by Zoë 写"]
    (rights,) = document.getElementsByTagNameNS(NAMESPACES["dc"], "rights")
    (item,) = rights.getElementsByTagNameNS(NAMESPACES["rdf"], "li")
    assert item.getAttribute("xml:lang") == "x-default"
    license = "CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/)"
    assert item.firstChild is not None
    assert item.firstChild.nodeValue == (
        "Drawn by a network that looked at: "
        f'"A crow, 0" by Zoë 写, https://example.org/0, {license}; '
        f'"A crow, 1" by Zoë 写, https://example.org/1, {license}'
    )
    assert texts(document, "stRef:filePath") == ["https://example.org/0", "https://example.org/1"]


def test_a_picture_without_photographs_credits_nobody() -> None:
    document = read_back(recipe(0, databases=[], encoder=None))
    assert texts(document, "photoshop:Credit") == texts(document, "dc:rights") == []


@pytest.mark.parametrize(
    "text",
    ["a\x00b\x08c", "<rdf:li>&amp;]]>", "\ufffe\uffff", "an owl \U0001f989", "\"quotes'"],
)
def test_any_text_is_sound_xml(text: str) -> None:
    record = recipe(
        1, query={"kind": "text", "label": text}, neighbors=[neighbor(0, author=text, title=text)]
    )
    (prompt,) = texts(read_back(record), "Iptc4xmpExt:AIPromptInformation")
    legal = "".join("\ufffd" if ord(one) < 32 or one in "\ufffe\uffff" else one for one in text)
    assert prompt == f"text: {legal}"


def test_thousands_of_photographs_are_counted_where_they_do_not_fit() -> None:
    packet = xmp_packet(recipe(0, neighbors=[neighbor(n, author=f"A{n}") for n in range(3000)]))
    assert len(packet.encode()) < 128 * 1024
    assert "and 2936 more" in packet
