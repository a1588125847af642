"""The backend `onnxruntime`: see `model.py`."""
