"""What several methods share: places in a model, dictionaries, diffusion pipelines, pictures, figures."""
