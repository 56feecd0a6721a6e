"""A hosted model: loaded once in the zygote, of whatever family."""
