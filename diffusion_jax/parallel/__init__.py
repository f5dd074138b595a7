"""Devices and processes: the mesh, array shardings, multi-process runs."""
