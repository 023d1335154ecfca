"""Click commands, thin: parse, build the configuration, one call."""
