"""Fetching of corpora: generated, or downloaded with resumption and digests."""
