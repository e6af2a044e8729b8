# Settings of NCCL and of PyTorch's use of it, each with its reason. Variables that are set already keep their values.

# A rank that fails or waits too long ends its process, so that the job ends; without this, ranks have hung for days.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# Each rank records its last collectives and writes them to a file when one times out, which shows the missing rank.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
# Only warnings and errors: at INFO they are lost among the messages of a thousand ranks.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# InfiniBand waits 4.096 us * 2^22 = 17 s for an answer, up to 7 times, so that the job survives a short failure of a port.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
export NCCL_IB_RETRY_CNT=${NCCL_IB_RETRY_CNT:-7}
# A growing batch changes the sizes of activations; expandable segments prevent fragmentation of memory.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# The ranks share a node's cores, and each needs little arithmetic on the CPU.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
