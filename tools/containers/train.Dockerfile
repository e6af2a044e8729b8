# Training, evaluation and everything else on NVIDIA GPUs. From the root of a checkout:
#   docker build --file tools/containers/train.Dockerfile --tag megagpt-train .
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

FROM ${BASE} AS build
ENV PATH=/opt/megagpt/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/megagpt
WORKDIR /build
COPY constraints.txt ./
RUN pip install --constraint constraints.txt setuptools wheel
RUN pip install --constraint constraints.txt torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY megagpt megagpt
COPY kernels kernels
COPY configs configs
RUN pip install --constraint constraints.txt --no-build-isolation ".[corpora,in-context,embeddings,serve,wandb,deepspeed]"

FROM ${BASE}
# Triton and DeepSpeed compile when they run; pass@k runs programs in bubblewrap.
RUN apt-get update && apt-get install --yes --no-install-recommends bubblewrap g++ python3-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 megagpt
COPY --from=build /opt/megagpt /opt/megagpt
ENV PATH=/opt/megagpt/bin:$PATH
USER megagpt
WORKDIR /home/megagpt
ENTRYPOINT ["megagpt"]
CMD ["--help"]
