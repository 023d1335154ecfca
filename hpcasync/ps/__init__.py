"""The parameter server: pure protocol state, the server loop, the worker's client."""
