"""`make demo`: export, serve, index, ask, measure and draw, on pictures that no network has seen."""
