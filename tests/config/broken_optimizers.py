"""Examples that break the rules of optimizers and schedules once; see broken_examples.py."""

OPTIMIZERS = [
    (
        "muon_has_its_engine",
        2,
        ["optim.optimizer=muon", "parallel.engine=deepspeed"],
        ["optim.optimizer (muon)", "parallel.engine is deepspeed", "parallel.zero_stage=1", "optim.optimizer=adam"],
    ),
    ("muon_has_its_engine", 1, ["optim.optimizer=muon", "optim.fused=te"], ["optim.fused (te)", "auto or torch"]),
    (
        "optimizer_options",
        1,
        ["optim.muon_momentum=0.9"],
        ["optim.muon_momentum (0.9)", "optim.optimizer is adam", "optim.optimizer=muon", "0.95"],
    ),
    (
        "optimizer_options",
        1,
        ["optim.decay_shape=linear"],
        ["optim.decay_shape (linear)", "optim.schedule is cosine", "optim.schedule=wsd", "sqrt"],
    ),
    (
        "warmup_before_decay",
        1,
        ["optim.schedule=wsd", "optim.decay_fraction=0.97"],
        ["optim.warmup_tokens (50000)", "36000", "optim.decay_fraction (0.97)", "optim.decay_tokens (1200000)"],
    ),
]
