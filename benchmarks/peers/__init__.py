"""Other toolkits, to compare with."""
