"""GPT-2 and what can be known of it from its configuration alone."""
