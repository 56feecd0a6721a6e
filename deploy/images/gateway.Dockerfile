# The gateway. No torch in it: a gateway never reads what users send.
FROM python:3.11-slim
RUN useradd --create-home --uid 10001 interlace && install -d -o interlace -g interlace /store
WORKDIR /src
COPY pyproject.toml README.md ./
COPY client client
COPY state state
COPY server server
COPY workers workers
COPY deploy deploy
RUN pip install --no-cache-dir '.[server,otel]'
USER interlace
EXPOSE 8000
CMD ["python", "-m", "interlace_server", "--config", "/etc/interlace.yaml"]
