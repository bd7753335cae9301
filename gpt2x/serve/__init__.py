"""A trained model as MLflow serves it: what `mlflow models serve` and `mlflow.pyfunc.load_model` run.

`gpt2x.formats.mlflow` writes the directory (docs/tracking.md, "Serve a model"). MLflow imports `pyfunc` by its name,
which loads the checkpoint in that directory; `requests` checks what a caller sends, and answers as MLflow does.
"""
