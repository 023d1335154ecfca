"""What this machine has of all that hpcasync can use: checks, self-tests on two ranks, and their report."""
