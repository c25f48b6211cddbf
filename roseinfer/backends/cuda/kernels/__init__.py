"""The backend's kernels in Triton, one family per file. Each file has the functions that launch them."""
