# The server of docs/serving.md. From the root of a checkout:
#   docker build --file tools/containers/serve.Dockerfile --tag megagpt-serve .
# PyPI's torch has CUDA; --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the smaller one without.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://pypi.org/simple
ENV PATH=/opt/megagpt/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/megagpt
WORKDIR /build
COPY constraints.txt ./
RUN pip install --constraint constraints.txt setuptools wheel
RUN pip install --constraint constraints.txt --index-url ${TORCH_INDEX} torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY megagpt megagpt
COPY kernels kernels
COPY configs configs
RUN pip install --constraint constraints.txt --no-build-isolation ".[serve]"

FROM ${BASE}
# Triton compiles the part of a kernel that launches it.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 megagpt
COPY --from=build /opt/megagpt /opt/megagpt
ENV PATH=/opt/megagpt/bin:$PATH
USER megagpt
WORKDIR /home/megagpt
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["megagpt", "serve", "--host", "0.0.0.0"]
