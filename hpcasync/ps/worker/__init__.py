"""What a worker does: pull, draw, push."""
