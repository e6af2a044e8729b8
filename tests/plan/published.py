"""Published figures of large runs on A100-80, and the configurations that they were measured with.

SC21: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", arXiv
2104.04473; its table 1's micro-batch sizes and interleaving are those of Megatron-LM's examples/sc21/run_table_1.sh.
Korthikanti: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198.
Both: sequences of 2,048 tokens, a vocabulary of 51,200, attention as two products around a fused softmax, dropout 0.1.
"""

from typing import NamedTuple

from megagpt.config.schema import Config, KernelsConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.plan.job import Job

SEQUENCE, VOCABULARY = 2048, 51200


class Run(NamedTuple):
    """A model and its layout."""

    hidden: int
    layers: int
    heads: int
    tensor: int
    pipeline: int
    virtual: int
    micro_batch: int
    batch: int
    gpus: int


SC21_TABLE_1 = [
    # run; billions of parameters, achieved TFLOP/s a GPU, as percentage of the peak
    (Run(2304, 24, 24, 1, 1, 1, 16, 512, 32), 1.7, 137, 44),
    (Run(3072, 30, 32, 2, 1, 1, 16, 512, 64), 3.6, 138, 44),
    (Run(4096, 36, 32, 4, 1, 1, 16, 512, 128), 7.5, 142, 46),
    (Run(6144, 40, 48, 8, 1, 1, 8, 1024, 256), 18.4, 135, 43),
    (Run(8192, 48, 64, 8, 2, 1, 4, 1536, 512), 39.1, 138, 44),
    (Run(10240, 60, 80, 8, 4, 3, 2, 1792, 1024), 76.1, 140, 45),
    (Run(12288, 80, 96, 8, 8, 2, 2, 2304, 1536), 145.6, 148, 47),
    (Run(16384, 96, 128, 8, 16, 2, 1, 2160, 1920), 310.1, 155, 50),
    (Run(20480, 105, 128, 8, 35, 3, 1, 2520, 2520), 529.6, 163, 52),
    (Run(25600, 128, 160, 8, 64, 1, 1, 3072, 3072), 1008.0, 163, 52),
]

SC21_TABLE_2 = [
    # run, achieved TFLOP/s a GPU, days to 300 billion tokens; ZeRO-3 (one tensor rank, one stage) first, then PTD-P
    (Run(12288, 96, 96, 1, 1, 1, 4, 1536, 384), 144, 90),
    (Run(12288, 96, 96, 1, 1, 1, 2, 1536, 768), 88, 74),
    (Run(12288, 96, 96, 1, 1, 1, 1, 1536, 1536), 44, 74),
    (Run(20480, 105, 128, 1, 1, 1, 4, 2560, 640), 138, 169),
    (Run(20480, 105, 128, 1, 1, 1, 2, 2240, 1120), 98, 137),
    (Run(20480, 105, 128, 1, 1, 1, 1, 2240, 2240), 48, 140),
    (Run(12288, 96, 96, 8, 12, 1, 1, 1536, 384), 153, 84),
    (Run(12288, 96, 96, 8, 12, 1, 1, 1536, 768), 149, 43),
    (Run(12288, 96, 96, 8, 12, 1, 1, 1536, 1536), 141, 23),
    (Run(20480, 105, 128, 8, 35, 1, 1, 2240, 560), 171, 156),
    (Run(20480, 105, 128, 8, 35, 1, 1, 2240, 1120), 167, 80),
    (Run(20480, 105, 128, 8, 35, 1, 1, 2240, 2240), 159, 42),
]

KORTHIKANTI_TABLE_5 = [
    # run; seconds of an iteration with full recomputation, and with selective recomputation and sequence parallelism;
    # model and hardware FLOPs utilisation of the latter in percent
    (Run(6144, 48, 64, 8, 1, 1, 4, 4, 8), 1.42, 1.10, 41.5, 43.7),
    (Run(12288, 96, 96, 8, 8, 3, 1, 64, 64), 18.13, 13.75, 51.4, 52.8),
    (Run(20480, 105, 128, 8, 35, 3, 1, 280, 280), 49.05, 37.83, 56.0, 57.0),
    (Run(25600, 128, 160, 8, 64, 1, 1, 512, 512), 94.42, 71.49, 56.3, 57.0),
]


def job(run: Run, recompute: str, sequence_parallel: bool, train_tokens: int = OptimConfig.train_tokens) -> Job:
    """`run` as it was measured."""
    config = Config(
        model=ModelConfig(
            num_layers=run.layers,
            hidden_size=run.hidden,
            num_attention_heads=run.heads,
            sequence_length=SEQUENCE,
            vocab_size=VOCABULARY,
            hidden_dropout=0.1,
            attention_dropout=0.1,
        ),
        parallel=ParallelConfig(
            tensor_parallel_size=run.tensor,
            sequence_parallel=sequence_parallel,
            pipeline_parallel_size=run.pipeline,
            virtual_pipeline_size=run.virtual,
            micro_batch_size=run.micro_batch,
            recompute=recompute,
            zero_stage=0,
            overlap_grad_reduce=run.pipeline == 1,  # run_table_1.sh: PyTorch's DistributedDataParallel
        ),
        kernels=KernelsConfig(attention="unfused", bias_dropout_add="torch"),
        optim=OptimConfig(global_batch_size=run.batch, train_tokens=train_tokens),
    )
    return Job(config, run.gpus, fused_gradient_accumulation=True, scattered_messages=not sequence_parallel)


def sc21_flops(run: Run) -> float:
    """FLOPs of an iteration with full recomputation (arXiv 2104.04473, equation 3)."""
    h, layers = run.hidden, run.layers
    return 96 * run.batch * SEQUENCE * layers * h**2 * (1 + SEQUENCE / (6 * h) + VOCABULARY / (16 * layers * h))
