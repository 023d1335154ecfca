"""What a server does: take pushes, sum them, step, publish."""
