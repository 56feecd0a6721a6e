"""One copy of a model at work: it takes jobs from the queue, has each run in a sandbox, and records what happens."""
