"""The decisions and messages of the parameter servers: pure code, no MPI, no tensors."""
