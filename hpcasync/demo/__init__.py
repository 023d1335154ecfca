"""The demonstration: the synchronous baseline and async-global on a small corpus, side by side."""
