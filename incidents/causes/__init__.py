"""Works out a root cause: `rules` at once from the evidence, `model` once a model has answered, `health` of it."""
