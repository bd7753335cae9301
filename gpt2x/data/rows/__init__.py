"""Row forms: how the text of a source becomes rows of token ids. `base.RowForm` says what a form has.

- `blocks`: rows of equal length, cut from running text.
- `labelled`: one text per row, with its label.
- `instruction`: instructions and responses, packed or one per row.
"""
