"""Networks to ONNX in the model repository; with training, the only place that imports torch."""
