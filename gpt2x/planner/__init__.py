"""Memory, communication and speed of a layout, predicted from the configuration."""
