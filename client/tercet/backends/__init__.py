"""Python-based Triton backends that the embedded server brings along; they run inside Triton, not here."""
