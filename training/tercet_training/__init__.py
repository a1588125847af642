"""Training: the demo networks, their synthetic picture world, and Pic2Word's mapping network."""
