"""Where a model's weights come from, how two models differ, which of some has written a text."""
