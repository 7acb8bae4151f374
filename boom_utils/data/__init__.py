"""From a manifest to training examples, evaluation sets and subsets. Never imports a model; a tokenizer is passed in."""
