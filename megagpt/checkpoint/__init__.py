"""Checkpoints that are atomic, verified and independent of the layout that wrote them."""
