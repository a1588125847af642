"""Composed image retrieval on NVIDIA Triton: search a picture collection with a picture and a sentence."""
