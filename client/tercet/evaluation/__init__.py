"""Evaluation as the field does it: data sets by their official files, their metrics, reports."""
