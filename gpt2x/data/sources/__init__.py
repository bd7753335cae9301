"""Sources of text: one file per kind of corpus, named as `dataset.corpus`. `base.Source` says what a source has."""
