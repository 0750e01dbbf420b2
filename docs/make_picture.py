"""Draw the README's picture: beads of a real frame, and the atoms made of them.

python docs/make_picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import MDAnalysis as mda
import mdbackmap
import numpy as np
from mpl_toolkits.mplot3d.art3d import Line3DCollection

ROOT = Path(__file__).parents[1]
COLOURS = {"C": "#4a6fa5", "N": "#2b4c9b", "O": "#c0392b", "S": "#d4a017"}


def draw(axis, positions, colours, size, bonds, width):
    axis.scatter(*positions.T, c=colours, s=size, depthshade=True, linewidths=0)
    axis.add_collection(
        Line3DCollection(positions[bonds], colors="#777777", linewidths=width, alpha=0.8)
    )
    low, high = positions.min(axis=0), positions.max(axis=0)
    middle, reach = (low + high) / 2, (high - low).max() / 2
    axis.set(xlim=middle[0] + np.array([-reach, reach]), ylim=middle[1] + np.array([-reach, reach]),
             zlim=middle[2] + np.array([-reach, reach]))  # fmt: skip
    axis.set_axis_off()
    axis.set_box_aspect((1, 1, 1), zoom=1.35)
    axis.view_init(elev=8, azim=20, roll=90)


def main():
    data = ROOT / "tutorials" / "data"
    cg = mda.Universe(data / "ubiquitin.tpr", data / "ubiquitin.xtc", to_guess=())
    aa = mdbackmap.universe(cg)
    system = aa.trajectory.system
    beads = aa.trajectory.backmapper.unwrap(
        aa.trajectory.ts.data["beads"], aa.trajectory.ts.triclinic_dimensions
    )
    child = np.flatnonzero(system.bead_parent >= 0)
    tree = np.stack([child, system.bead_parent[child]], axis=1)
    figure = plt.figure(figsize=(10, 4.6))
    left = figure.add_subplot(1, 2, 1, projection="3d")
    right = figure.add_subplot(1, 2, 2, projection="3d")
    kinds = np.where(system.beads.names == "BB", "#2a9d8f", "#e9c46a")
    draw(left, beads, kinds, 170, tree, 1.5)
    draw(right, aa.atoms.positions, [COLOURS[e] for e in aa.atoms.elements], 14,
         aa.bonds.indices, 1.6)  # fmt: skip
    left.set_title(f"{len(beads)} beads", y=0.92)
    right.set_title(f"{len(aa.atoms)} atoms", y=0.92)
    figure.subplots_adjust(0, 0, 1, 0.95, 0, 0)
    figure.savefig(ROOT / "docs" / "ubiquitin.png", dpi=110)


if __name__ == "__main__":
    main()
