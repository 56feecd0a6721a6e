#!/usr/bin/env bash
# Ray's head, and on it the workers' main process, which places the replicas on all nodes. Either one's end is the other's.
# RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) is the token that all nodes share; INTERLACE_RAY__ADDRESS should be `auto`.
# Under KubeRay its own command, KUBERAY_GEN_RAY_START_CMD, starts the head.
set -euo pipefail

start=${KUBERAY_GEN_RAY_START_CMD:-"ray start --head --block --port=${RAY_PORT:-6379} --include-dashboard=false
  --dashboard-host=127.0.0.1 --object-store-memory=${RAY_OBJECT_STORE_BYTES:-104857600} --disable-usage-stats"}
read -r -d '' -a words <<<"$start" || true # its words; none of them is quoted
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-5} # the replicas have ended before
workers=
stopped=
trap 'stopped=1; [ -z "$workers" ] || kill -TERM "$workers" 2>/dev/null || true' TERM INT

"${words[@]}" &
ray=$!
until ray health-check --address "127.0.0.1:${RAY_PORT:-6379}" >/dev/null 2>&1; do
  [ -z "$stopped" ] && kill -0 "$ray" || exit 1
  sleep 1
done
python -m interlace_workers --config "${INTERLACE_CONFIG:-/etc/interlace.yaml}" &
workers=$!
code=0
wait -n "$ray" "$workers" || code=$?
# Jobs that run may end before Ray does: the workers let them, on SIGTERM. Then nothing is left that Ray should wait for.
kill -TERM "$workers" 2>/dev/null || true
wait "$workers" || true
kill -TERM "$ray" 2>/dev/null || true
wait "$ray" || true
[ -z "$stopped" ] || code=0
exit "$code"
