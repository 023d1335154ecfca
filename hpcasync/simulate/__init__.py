"""Any cluster in virtual time: the protocol's own decisions and, where asked for, its own gradients."""
