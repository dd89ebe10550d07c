"""The model as arrays, its estimators and predictions."""
