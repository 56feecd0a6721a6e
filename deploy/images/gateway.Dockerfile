# The gateway. No torch in it: a gateway never reads what users send.
# Build it from the top of the repository: docker build -f deploy/images/gateway.Dockerfile .
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
RUN useradd --create-home --uid 10001 interlace && install -d -o interlace -g interlace /store /state
COPY deploy/images/requirements-gateway.txt /tmp/
RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/requirements-gateway.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && pip check && rm -r /tmp/wheels /tmp/requirements-gateway.txt
ENV PYTHONDONTWRITEBYTECODE=1 INTERLACE_STATE_DIR=/state
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "interlace_server", "--config", "/etc/interlace.yaml"]
