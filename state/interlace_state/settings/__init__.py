"""The sections of the configuration, which `interlace_state.config` puts together."""
