"""From a manifest to training examples, evaluation sets and subsets. Imports no model; a tokenizer is passed in."""
