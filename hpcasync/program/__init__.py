"""Any PyTorch program as a rank of a job: `hpcasync.join`."""
