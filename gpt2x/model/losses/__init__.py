"""The losses of the tasks, as Cells: weighted sums, so that weights that sum to 1 give a mean."""
