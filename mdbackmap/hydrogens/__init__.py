"""Heavy atoms → all atoms: which hydrogens there are, and where they stand."""
