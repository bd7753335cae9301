"""Learning-rate schedules, AdamW, loss scale."""
