"""Every call that can fail is made to fail, and every file that is read is spoilt."""
