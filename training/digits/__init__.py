"""Shrunken image backbones that really see: trained on scikit-learn's scans of handwritten digits."""
