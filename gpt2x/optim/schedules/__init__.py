"""Learning-rate schedules: one file each, named as its value of `schedule.name`.

A file NAME.py defines `decay(progress, config)`. `progress.fraction` runs from 0 at the end of warmup to 1 at the last
update; `base.py` has the steps too, for curves over steps. The result is usually 1 at first and 0 at last.
`gpt2x.optim.schedule` adds warmup and the final ratio. The file may define a dataclass `Settings` for keys under
`schedule.settings`; `decay` reads them by `SCHEDULES.settings(config.name, config.settings)`. A curve without a floor
needs `final_ratio: 0` in its YAML file.
"""
