"""The trackers, one file each: `trackers/NAME.py` is `tracker.name=NAME` and defines `create(config, outputs)`."""
