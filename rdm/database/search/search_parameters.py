"""Search parameters of an index (nprobe, efSearch of its quantizer), kept in the index's own file.

faiss writes them in the file's head, before the inverted lists, so every tool that opens the file
searches as deep as the audit did. The head's length does not depend on their values: the head is
written again in place, the lists stay.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# faiss ships no types for the functions that it makes at run time.

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss


def open_mapped(path: Path) -> faiss.Index:
    """Open an index file with its lists memory-mapped and read-only."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def set_parameters(index: faiss.Index, parameters: str) -> None:
    """Set search parameters as faiss writes them (`nprobe=32,quantizer_efSearch=64`); "": none."""
    if parameters:
        faiss.ParameterSpace().set_index_parameters(index, parameters)


def write_parameters(path: Path, parameters: str) -> None:
    """Write search parameters into an index file, as if faiss had written it with them."""
    # Heads of equal length: the lists stay where they are.
    before, after = _heads(path, parameters)
    with open(path, "r+b") as file:
        if len(after) != len(before) or file.read(len(before)) != before:
            raise AssertionError("this release of faiss does not write the inverted lists last")
        file.seek(0)
        file.write(after)


def written_lists(inverted: Any) -> bytes:
    """Return the bytes that faiss writes of inverted lists."""
    writer = faiss.VectorIOWriter()
    faiss.write_InvertedLists(inverted, writer)
    return faiss.vector_to_array(writer.data).tobytes()


def _heads(path: Path, parameters: str) -> tuple[bytes, bytes]:
    """Return an index file's head, before its lists: as it is, and with other search parameters."""
    index = open_mapped(path)
    ivf = faiss.extract_index_ivf(index)

    # Written with empty lists: what remains in front of them is the head.
    empty = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    # Not owned: the mapped lists would be written as the name of their file.
    ivf.replace_invlists(empty)

    tail = len(written_lists(empty))
    before = faiss.serialize_index(index).tobytes()[:-tail]
    set_parameters(index, parameters)
    return before, faiss.serialize_index(index).tobytes()[:-tail]
