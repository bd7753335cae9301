"""Row forms: how the text of a source becomes rows of token ids. `base.RowForm` says what a form has."""
