"""Where text comes from: a file each kind of corpus."""
