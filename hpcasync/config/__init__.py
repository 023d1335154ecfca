"""Settings: one schema, read strictly."""
