"""Reads images, splits them, and makes training batches of them."""
