"""Works out a root cause: `rules` at once from the evidence, `model` when a language model has answered, `health` of it."""
