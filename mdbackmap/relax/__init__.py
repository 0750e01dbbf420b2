"""Force fields, short minimisations and their topologies: the only room that imports OpenMM."""
