"""Whether trajectory files are whole, read from the headers of their frames.

MDAnalysis stops quietly before a frame that is cut in its header (XTC, TRR) or anywhere (DCD),
and cannot open an XTC whose second frame is cut. Nothing is decoded here: a few bytes are read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from mdbackmap.errors import InputFileError

_XTC = {1995: ">i", 2023: ">q"}
"""Magic numbers, and how each writes the size of the compressed coordinates."""
_XTC_SMALLEST = range(9, 73)
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
        end = 0
        for number, hint in (("first", ""), ("second", "; only the first is whole")):
            end = _frame_end(handle, end)
            if end is None or end > total:
                raise InputFileError(
                    f"{path}: the file is cut short within its {number} frame{hint}"
                )
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
    """Tell whether the header of an XTC frame makes sense.

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
    if head[:4] == struct.pack(">i", _TRR):
        return True
    here = struct.pack(">i", n_atoms)
    if head[4:8] != here or head[52:56] != here:
        return False
    if n_atoms <= 9:
        return True
    if len(head) < 88:
        return False
    precision, *bounds, smallest = struct.unpack_from(">f6ii", head, 56)
    extents = [high - low for low, high in zip(bounds[:3], bounds[3:], strict=True)]
    return precision > 0 and min(extents) >= 0 and smallest in _XTC_SMALLEST


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
