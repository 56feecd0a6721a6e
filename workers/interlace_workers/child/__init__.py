"""The only code of ours that runs beside user code."""
