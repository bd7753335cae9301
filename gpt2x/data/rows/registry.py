"""The row forms by name."""

from gpt2x.extensions import Extensions

ROW_FORMS = Extensions("gpt2x.data.rows", "FORM", "row form")
