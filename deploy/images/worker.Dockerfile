# Workers: what runs next to weights. TORCH picks the build, e.g. torch==2.13.0+cpu with its own index.
FROM python:3.11-slim
ARG TORCH=torch==2.13.0
RUN useradd --create-home --uid 10001 interlace && install -d -o interlace -g interlace /cache /store
WORKDIR /src
COPY pyproject.toml README.md ./
COPY client client
COPY state state
COPY server server
COPY workers workers
COPY deploy deploy
RUN pip install --no-cache-dir "$TORCH" '.[workers,otel]'
USER interlace
CMD ["python", "-m", "interlace_workers", "--config", "/etc/interlace.yaml"]
