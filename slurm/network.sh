# Settings of NCCL and of what PyTorch does around it, each with its reason. What the environment sets already wins.

# A rank that fails or waits too long ends its process, so that the job ends; without it ranks have hung for days.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# The last collectives of every rank are kept, and written out when one times out: who was missing can be read there.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
# Errors are said, and nothing else: at INFO a thousand ranks bury them.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# InfiniBand waits 4.096 us * 2^22 = 17 s for an answer, up to 7 times: a port that comes back costs a pause, not the job.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
export NCCL_IB_RETRY_CNT=${NCCL_IB_RETRY_CNT:-7}
# A batch that grows changes sizes of activations; segments that can grow keep that from fragmenting memory.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Ranks share a node's cores; a rank's own arithmetic on the CPU is small.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
