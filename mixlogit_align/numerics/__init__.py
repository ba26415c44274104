"""Numerical building blocks: tensors in, tensors out. No distributions, no modules, no files."""
