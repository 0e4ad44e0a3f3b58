"""Kernels of the selective scan: numba on a CPU, Triton on a GPU."""
