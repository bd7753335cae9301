"""A task turns a batch into a loss."""
