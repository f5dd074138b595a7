"""Devices and processes: the mesh, where arrays lie, joining hosts."""
