"""How gradients, parameters and control words travel between ranks."""
