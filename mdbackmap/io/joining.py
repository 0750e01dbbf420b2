"""One file from files of consecutive frames, in any format."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import OutputFileError
from mdbackmap.io.files import quiet_guesses
from mdbackmap.io.writing import CHAINED, FrameWriter, squeezer, text_format
from mdbackmap.structure import Frame

_BLOCK = 1 << 20
_DCD_FRAMES = 8
"""Byte at which a .dcd file says how many frames it holds."""


def checksum(path: Path) -> int:
    """Return a checksum of a file."""
    total = 0
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total


def to_disk(path: Path) -> None:
    """Wait until a file, or what a folder lists, would survive a power cut.

    Raises
    ------
    OSError
        Disk full, among others: some file systems say so only now.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Chain:
    """Joins files whose frames lie one behind the other: what is added is final.

    Parameters
    ----------
    part : Path
        The file to make; its suffix decides on the format.
    universe : callable
        Returns the Universe that is written.
    n_frames : int
        Frames of the whole trajectory, failed ones included.
    """

    def __init__(self, part: Path, universe: Callable[[], mda.Universe], n_frames: int) -> None:
        self.part, self.universe, self.n_frames = part, universe, n_frames

    def start_from(self, size: int) -> None:
        """Forget what was added behind the first ``size`` bytes."""
        with self.part.open("ab") as part:
            if part.tell() < size:
                raise OutputFileError(
                    f"{self.part}: is shorter than it was; start anew with --restart"
                )
            part.truncate(size)

    def add(self, piece: Path, dimensions: np.ndarray | None) -> int:
        """Add the frames of a file.

        Parameters
        ----------
        dimensions : ndarray, shape=(6,), Å and degrees, or None
            Box of its first frame.

        Returns
        -------
        int
            Bytes there are now; they are on the disk.
        """
        with piece.open("rb") as source, self.part.open("ab") as part:
            first = self._skip_head(source)
            if not part.tell():
                part.write(self._head(first, dimensions))
            while block := source.read(_BLOCK):
                part.write(block)
            part.flush()
            os.fsync(part.fileno())
            return part.tell()

    def finish(self, pieces: Sequence[Path], written: int) -> None:
        """Complete the file, which holds ``written`` frames; may be done again."""
        tail = self._tail()
        if tail:
            with self.part.open("ab") as part:
                part.write(tail)

    def _skip_head(self, source: BinaryIO) -> bytes:
        return b""

    def _head(self, first: bytes, dimensions: np.ndarray | None) -> bytes:
        return first

    def _tail(self) -> bytes:
        return b""


class DCDChain(Chain):
    """Joins .dcd files: a header that counts the frames, then frames of one size."""

    def _skip_head(self, source: BinaryIO) -> bytes:
        size = 0
        for _ in range(3):
            source.seek(size)
            size += struct.unpack("<i", source.read(4))[0] + 8
        source.seek(0)
        return source.read(size)

    def finish(self, pieces: Sequence[Path], written: int) -> None:
        """Write the number of frames into the header."""
        with self.part.open("r+b") as part:
            part.seek(_DCD_FRAMES)
            part.write(struct.pack("<i", written))


class TextChain(Chain):
    """Joins texts: a head, frames, and a tail."""

    def _text(self):
        return text_format(self.part)(self.universe(), models=self.n_frames > 1)

    def _head(self, first: bytes, dimensions: np.ndarray | None) -> bytes:
        words = self._text().head(dimensions)
        return squeezer(self.part)(words.encode()) if words else b""

    def _tail(self) -> bytes:
        return squeezer(self.part)(self._text().tail().encode())


class Container:
    """Joins files of formats with an order of their own, frame by frame and all at the end.

    Parameters as in `Chain`, and

    dt : float, ps
        Time between frames.
    """

    def __init__(
        self, part: Path, universe: Callable[[], mda.Universe], n_frames: int, dt: float
    ) -> None:
        self.part, self.universe, self.n_frames, self.dt = part, universe, n_frames, dt

    def start_from(self, size: int) -> None:
        """Do nothing: the file is made at the end."""

    def add(self, piece: Path, dimensions: np.ndarray | None) -> int:
        """See to it that a file that is to be joined later is on the disk."""
        to_disk(piece)
        return 0

    def finish(self, pieces: Sequence[Path], written: int) -> None:
        """Write the file from its pieces."""
        universe, place = self.universe(), 0
        with FrameWriter(self.part, self.part, universe, self.n_frames, self.dt) as writer:
            for piece in pieces:
                with quiet_guesses(), mda.coordinates.core.reader(str(piece)) as frames:
                    for ts in frames:
                        box = None if ts.dimensions is None else ts.triclinic_dimensions
                        writer.write(Frame(ts.positions, box, ts.time, place), ts.positions)
                        place += 1


def joiner(
    part: Path, universe: Callable[[], mda.Universe], n_frames: int, dt: float
) -> Chain | Container:
    """Return what joins files of the format that a name stands for."""
    if not str(part).lower().endswith(CHAINED):
        return Container(part, universe, n_frames, dt)
    kind = DCDChain if part.suffix.lower() == ".dcd" else TextChain if text_format(part) else Chain
    return kind(part, universe, n_frames)
