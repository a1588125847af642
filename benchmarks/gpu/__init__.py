"""Every network and the pipeline on an NVIDIA GPU: see `__main__.py`."""
