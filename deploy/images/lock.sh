#!/usr/bin/env bash
# Renew what the images are built of, from pyproject.toml: pip install uv, then deploy/images/lock.sh [uv's options].
# `--upgrade` takes the newest versions that pyproject.toml allows; without it, what can stay stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=3.11       # of the images' BASE
torch=2.13.0      # of the Makefile, and of what the tests run with
platform=x86_64-manylinux_2_28
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

lock() { # FILE INPUT [OPTION...]
  uv pip compile --quiet --python-version "$python" --python-platform "$platform" --generate-hashes --no-header \
    --no-annotate --constraint "$folder/torch.txt" --output-file "$@"
}

echo "torch==$torch" >"$folder/torch.txt"
echo hatchling >"$folder/build.in"
cd deploy/images
lock requirements-build.txt "$folder/build.in" "$@"
lock requirements-gateway.txt ../../pyproject.toml --extra server --extra pictures --extra otel --extra commands "$@"
# Torch and CUDA's libraries apart, so that a build for processors can be put in their place.
cat requirements-torch.txt requirements-workers.txt >"$folder/all.txt" 2>/dev/null || true
lock "$folder/all.txt" ../../pyproject.toml --extra workers --extra otel "$@"
awk -v torch=requirements-torch.txt -v others=requirements-workers.txt '
  /^[a-zA-Z]/ { file = /^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ ? torch : others }
  { print > file }
' "$folder/all.txt"
