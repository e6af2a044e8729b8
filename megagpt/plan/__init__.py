"""Pre-flight: will a run fit, how fast will it be, what will it cost, is everything in place?"""
