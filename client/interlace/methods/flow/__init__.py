"""Where a fact's information goes: cut its way to the last token, layer by layer."""
