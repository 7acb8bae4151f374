"""From a recipe and several checkpoints of one family to one merged model."""
