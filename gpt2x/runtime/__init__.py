"""State of the process: the console, memory, the device."""
