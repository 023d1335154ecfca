"""How each mode combines gradients."""
