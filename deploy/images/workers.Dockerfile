# Workers: what runs next to weights; also Ray's nodes. PyPI's torch, which the lock names, runs on processors and on
# NVIDIA GPUs. A smaller one without CUDA, of the same version, from the index that pytorch.org names for it:
#   docker build -f deploy/images/workers.Dockerfile --build-arg TORCH="torch==2.13.0+cpu --index-url URL" .
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY deploy/images/requirements-build.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md ./
COPY client client
COPY state state
COPY server server
COPY workers workers
COPY deploy deploy
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE}
ARG TORCH="--require-hashes -r /tmp/requirements-torch.txt"
RUN useradd --create-home --uid 10001 interlace && install -d -o interlace -g interlace /store /state /cache
COPY deploy/images/requirements-torch.txt deploy/images/requirements-workers.txt /tmp/
# TORCH is several words.
# hadolint ignore=SC2086,DL3013
RUN pip install --no-cache-dir --no-deps ${TORCH}
# hadolint ignore=DL3059
RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/requirements-workers.txt
COPY deploy/images/ray_head.sh /usr/local/bin/interlace-ray-head
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && pip check && rm -r /tmp/wheels /tmp/requirements-*.txt
ENV PYTHONDONTWRITEBYTECODE=1 INTERLACE_STATE_DIR=/state INTERLACE_CACHE_DIR=/cache HF_HOME=/cache/hf
USER 10001:10001
CMD ["python", "-m", "interlace_workers", "--config", "/etc/interlace.yaml"]
