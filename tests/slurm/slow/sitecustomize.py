"""Makes steps take a while wherever this folder is on PYTHONPATH, so that a tiny run lasts as long as a test needs."""

import os
import sys
import time

if "RANK" in os.environ and sys.argv[:1] == ["-m"]:  # a rank of `python -m megagpt`
    from megagpt.train.trainer import Trainer

    begin_step = Trainer.begin_step

    def slow(self):
        time.sleep(0.3)
        return begin_step(self)

    Trainer.begin_step = slow
