"""Whether trajectory files are whole and sound.

MDAnalysis stops quietly before a frame that is cut in its header (XTC, TRR) or anywhere (DCD),
cannot open an XTC whose second frame is cut, and may end the process over damaged coordinates.
Nothing is decoded here.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mdbackmap.compiled import compiled
from mdbackmap.errors import InputFileError

_XTC = {1995: ">i", 2023: ">q"}
"""Magic numbers, and how each writes the size of the compressed coordinates."""
LEAST_BITS, MOST_BITS = 9, 73
"""Places in the format's table of sizes that a frame may name."""
_TRR = 1993


def check_start(path: str | Path) -> None:
    """Refuse an XTC or TRR file that MDAnalysis could not open, saying why.

    Raises
    ------
    InputFileError
        Another kind of file under that name, or one cut within its first two frames.
    """
    total = Path(path).stat().st_size
    with Path(path).open("rb") as handle:
        head = handle.read(4)
        magic = struct.unpack(">i", head)[0] if len(head) == 4 else None
        if magic not in (*_XTC, _TRR):
            kind = Path(path).suffix.lstrip(".").upper()
            raise InputFileError(f"{path}: is no {kind} file; it starts with {head!r}")
        # MDAnalysis reads two frames of a file when it opens it.
        n_atoms, end = struct.unpack(">i", handle.read(4).ljust(4, b"\0"))[0], 0
        for number, hint in (("first", ""), ("second", "; only the first is whole")):
            start, end = end, _frame_end(handle, end)
            if end is None or end > total:
                raise InputFileError(
                    f"{path}: the file is cut short within its {number} frame{hint}"
                )
            if not is_sound(path, start, n_atoms):
                raise InputFileError(f"{path}: its {number} frame is damaged{hint}")
            if end == total:
                return


def whole_frames(path: str | Path, n_frames: int, last: int | None = None) -> tuple[int, bool]:
    """Count the frames of a file that are whole.

    Parameters
    ----------
    n_frames : int
        Frames that MDAnalysis finds.
    last : int, optional
        Byte where the last of them starts; needed for XTC and TRR.

    Returns
    -------
    n_whole : int
    complete : bool
        False where the file ends within a frame, or where something follows the last one. Formats
        other than XTC, TRR and DCD count as complete.
    """
    total = Path(path).stat().st_size
    with Path(path).open("rb") as handle:
        if last is not None:
            end = _frame_end(handle, last)
            if end is None or end > total:
                return n_frames - 1, False
            return n_frames, end == total
        if Path(path).suffix.lower() == ".dcd":
            return n_frames, not _dcd_rest(handle, total)
    return n_frames, True


def is_sound(path: str | Path, start: int, n_atoms: int) -> bool:
    """Tell whether an XTC frame can be decoded.

    MDAnalysis does not look: it returns what was in memory, or the process dies by a signal.

    Parameters
    ----------
    start : int
        Byte where the frame starts.
    n_atoms : int
        Particles it must hold.
    """
    with Path(path).open("rb") as handle:
        handle.seek(start)
        head = handle.read(88)
        magic = struct.unpack_from(">i", head)[0] if len(head) >= 4 else None
        if magic not in _XTC:
            return magic == _TRR
        here = struct.pack(">i", n_atoms)
        if n_atoms < 1 or head[4:8] != here or head[52:56] != here:
            return False
        if n_atoms <= 9:
            return True
        if len(head) < 88:
            return False
        precision, *bounds, smallest = struct.unpack_from(">f6ii", head, 56)
        extents = [high - low for low, high in zip(bounds[:3], bounds[3:], strict=True)]
        if not (precision > 0 and min(extents) >= 0 and LEAST_BITS <= smallest < MOST_BITS):
            return False
        size = struct.calcsize(_XTC[magic])
        n_bytes = struct.unpack(_XTC[magic], handle.read(size).rjust(size, b"\0"))[0]
        # No more than what libraries have buffers for.
        if not 0 < n_bytes <= 4 * (18 * n_atoms // 5 - 3):
            return False
        packed = handle.read(n_bytes)
    if len(packed) != n_bytes:
        return False
    sizes = [extent + 1 for extent in extents]
    large = max(sizes) >= 1 << 24
    wide = sum(n.bit_length() for n in sizes) if large else math.prod(sizes).bit_length()
    return _holds(np.frombuffer(packed + b"\0\0", np.uint8), n_atoms, wide, smallest)


@compiled
def _holds(packed, n_atoms, wide, smallest):
    """Tell whether compressed coordinates, and two bytes more, are those of so many particles.

    A particle is written in so many bits as the extents take, ``wide``, and a bit that says whether
    five more follow: how many particles follow it in few bits each (times three), and whether these
    few bits become more or fewer from there on. Only the lengths are read here.
    """
    narrow, followers, found, at, end = smallest, 0, 0, 0, 8 * (len(packed) - 2)
    while found < n_atoms:
        at += wide
        if at >= end:
            return False
        byte, bit = at >> 3, at & 7
        word = np.int64(packed[byte]) << 8 | np.int64(packed[byte + 1])
        at += 1
        change = 0
        if word >> (15 - bit) & 1:
            followers, change = divmod(word >> (10 - bit) & 31, 3)
            change -= 1
            at += 5
        at += followers * narrow
        found += 1 + followers
        narrow += change
        if narrow < LEAST_BITS or narrow >= MOST_BITS:
            return False
    return found == n_atoms and at <= end < at + 32


def _frame_end(handle: BinaryIO, start: int) -> int | None:
    """Byte behind the frame that starts at ``start``; None where its header is cut or is none."""
    handle.seek(start)
    head = handle.read(100)
    try:
        magic = struct.unpack_from(">i", head)[0]
        size = _trr_size(head) if magic == _TRR else _xtc_size(head, _XTC[magic])
    except (struct.error, KeyError, ZeroDivisionError):
        return None
    return start + size if size > 0 else None


def _xtc_size(head: bytes, integer: str) -> int:
    n_atoms = struct.unpack_from(">i", head, 4)[0]
    if n_atoms <= 9:
        # So few are not compressed.
        return 56 + 12 * n_atoms
    packed = struct.unpack_from(integer, head, 88)[0]
    return 88 + struct.calcsize(integer) + -(-packed // 4) * 4


def _trr_size(head: bytes) -> int:
    length = struct.unpack_from(">i", head, 8)[0]
    start = 12 + -(-length // 4) * 4
    blocks = struct.unpack_from(">10i", head, start)
    n_atoms = struct.unpack_from(">i", head, start + 40)[0]
    of_vectors = next((size for size in blocks[7:] if size), 0)
    real = of_vectors // (3 * n_atoms) if of_vectors else blocks[2] // 9
    return start + 52 + 2 * real + sum(blocks)


def _dcd_rest(handle: BinaryIO, total: int) -> int:
    """Bytes behind the last whole frame; 0 for variants with frames of several sizes."""
    head = handle.read(92)
    order = "<" if head[:4] == struct.pack("<i", 84) else ">"
    control = struct.unpack_from(f"{order}20i", head, 8)
    n_fixed, with_box, four_dimensions, charmm = (control[k] for k in (8, 10, 11, 19))
    here = 0
    for _ in range(3):
        handle.seek(here)
        size = struct.unpack(f"{order}i", handle.read(4))[0]
        here += size + 8
    handle.seek(here - 8)
    n_atoms = struct.unpack(f"{order}i", handle.read(4))[0]
    if n_fixed:
        return 0
    records = 3 + bool(charmm and four_dimensions)
    frame = records * (4 * n_atoms + 8) + (56 if charmm and with_box else 0)
    return (total - here) % frame
