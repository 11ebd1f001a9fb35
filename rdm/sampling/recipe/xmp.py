"""XMP for pictures: that a network drew them, and whose photographs it looked at.

Properties of IPTC's photo metadata standard 2025.1, Dublin Core and Adobe's XMP specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from rdm.sampling.recipe.credits import Photograph, credit_line, photographs_of
from rdm.sampling.recipe.record import SampleRecord

TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""Of an edit of a user's own picture."""

NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stRef": "http://ns.adobe.com/xap/1.0/sType/ResourceRef#",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
_MAX_PHOTOGRAPHS = 64  # the recipe beside it has the others
_MAX_TEXT, _MAX_RIGHTS = 2000, 64 * 1024
# What XML 1.0 has no way to write.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


def xmp_packet(record: SampleRecord) -> str:
    """Return the XMP packet of a picture with a recipe."""
    return _packet(_texts(record), photographs_of([record]))


def sheet_packet(records: Sequence[SampleRecord]) -> str:
    """Return the XMP packet of several pictures in one: the mark of a network, and the credits."""
    kinds = [_texts(record)["Iptc4xmpExt:DigitalSourceType"] for record in records]
    texts = {
        "Iptc4xmpExt:DigitalSourceType": COMPOSITE
        if COMPOSITE in kinds
        else TRAINED_ALGORITHMIC_MEDIA,
        "xmp:CreatorTool": _software(records[0]),
    }
    return _packet(texts, photographs_of(records))


def _packet(texts: Mapping[str, str], photographs: Sequence[Photograph]) -> str:
    for prefix, uri in NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.Element(_name("x:xmpmeta"))
    rdf = ElementTree.SubElement(root, _name("rdf:RDF"))
    description = ElementTree.SubElement(rdf, _name("rdf:Description"), {_name("rdf:about"): ""})

    for name, value in texts.items():
        ElementTree.SubElement(description, _name(name)).text = _legal(value)
    if photographs:
        _add_photographs(description, photographs)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{text}\n<?xpacket end="r"?>'


def _texts(record: SampleRecord) -> dict[str, str]:
    """Return the properties that are plain texts."""
    is_edit = record.start is not None and record.start.has_picture
    model = record.model
    texts = {
        "Iptc4xmpExt:DigitalSourceType": COMPOSITE if is_edit else TRAINED_ALGORITHMIC_MEDIA,
        "Iptc4xmpExt:AISystemUsed": f"{model.name} ({model.digest}), retrieval-diffusion",
        "Iptc4xmpExt:AISystemVersionUsed": record.software.rdm,
        "xmp:CreatorTool": _software(record),
        "dc:identifier": f"sha256:{record.pixels_sha256}",
    }
    if record.query is not None:
        # Who asked is never said: Iptc4xmpExt:AIPromptWriterName stays out.
        turned = "" if record.query.turn is None else f", {record.query.turn}"
        prompt = f"{record.query.kind}: {record.query.label}{turned}"
        texts["Iptc4xmpExt:AIPromptInformation"] = prompt
    return texts


def _software(record: SampleRecord) -> str:
    return f"retrieval-diffusion {record.software.rdm}"


def _add_photographs(description: ElementTree.Element, photographs: Sequence[Photograph]) -> None:
    """Add whose photographs conditioned: as a line of credit, as rights and as ingredients."""
    # Readers show a line or two: whoever needs all finds them in the recipe.
    shown = photographs[:_MAX_PHOTOGRAPHS]
    more = len(photographs) - len(shown)
    rest = f"; and {more} more, see the recipe in this file" if more else ""

    # IPTC's line of credit, which photo libraries read: names alone.
    authors = dict.fromkeys(one.author or "author not stated" for one in shown)
    names = f"drawn from photographs by {'; '.join(authors)}"
    ElementTree.SubElement(description, _name("photoshop:Credit")).text = _legal(names + rest)

    # Rights hold the full lines of credit, which CC BY asks for.
    rights = ElementTree.SubElement(description, _name("dc:rights"))
    alternatives = ElementTree.SubElement(rights, _name("rdf:Alt"))
    lines = "; ".join(credit_line(one) for one in shown)
    text = f"Drawn by a network that looked at: {lines}{rest}"
    item = ElementTree.SubElement(alternatives, _name("rdf:li"), {_XML_LANG: "x-default"})
    item.text = _legal(text, _MAX_RIGHTS)

    # A ResourceRef names what was used by its address; photographs without one have none.
    pages = [page for one in shown if (page := one.landing_page or one.url)]
    if pages:
        ingredients = ElementTree.SubElement(description, _name("xmpMM:Ingredients"))
        bag = ElementTree.SubElement(ingredients, _name("rdf:Bag"))
        for page in pages:
            item = ElementTree.SubElement(
                bag, _name("rdf:li"), {_name("rdf:parseType"): "Resource"}
            )
            ElementTree.SubElement(item, _name("stRef:filePath")).text = _legal(page)


def _legal(text: str, most: int = _MAX_TEXT) -> str:
    """Return at most so many characters of a text, without those that XML cannot hold."""
    return _ILLEGAL.sub("\ufffd", text[:most])


def _name(prefixed: str) -> str:
    prefix, _, local = prefixed.partition(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"
