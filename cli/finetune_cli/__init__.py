"""`kubectl finetune`: a person's side of a FineTuneJob, from the first YAML to the adapter on his own disk."""
