"""Capture: options, cost, recording, and the coordinates of the Dataset."""
