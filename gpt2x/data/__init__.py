"""Text becomes rows of token ids in MindRecord files, once; training and evaluation read the rows.

- `prepare.prepare` does it: a source reads text, a tokenizer encodes it, a row form cuts rows, the cache keeps them.
- `sources/`: who reads; one file per kind of corpus, named as `dataset.corpus`.
- `rows/`: how rows are cut; one file per form.
- `tokenizers/`: how a tokenizer is trained; one file per kind, named as `tokenizer.kind`. `tokenizer` loads and saves.
- `reading/`: files, downloads and documents, for the sources.
- `mindrecord`: the files. `sampling`: the order of batches. `export`: rows that leave the cache.

No module here imports mindspore before it reads or writes rows.
"""
