#!/usr/bin/env bash
# Make the secrets that docker-compose.yml (and deploy/kubernetes) read from files: deploy/secrets.sh [FOLDER].
# What is there already stays. Containers have accounts of their own, so that the files may be read by all and the
# folder by its owner only: who cannot enter it reaches none of them.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

keep() { # NAME, its contents on standard input
  if [ -e "$1" ]; then
    cat >/dev/null
  else
    cat >"$1.new"
    chmod 444 "$1.new"
    mv "$1.new" "$1"
    echo "made $folder/$1"
  fi
}

random | keep redis_password
printf 'redis://:%s@redis:6379/0' "$(cat redis_password)" | keep redis_url
random | keep ray_token
random | keep grafana_password
# An admin's API key, which a container makes once Redis runs: docs/observability.md.
if [ ! -e metrics_key ]; then install -m 644 /dev/null metrics_key; fi
