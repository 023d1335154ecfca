"""What watches a run: stopping, validation, scoring, stalls."""
