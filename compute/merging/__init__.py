"""An adapter and its base model as one model, for whatever loads no adapters."""
