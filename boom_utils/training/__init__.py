"""Batch plans, losses and the training loop: from a base model and a subset to a member."""
