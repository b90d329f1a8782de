"""Measurements of speed, side by side with peers."""
