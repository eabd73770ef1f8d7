#!/bin/sh
# The quick start of the README as a script: starts the agent on the built-in backend, reads
# a secret over HTTP and from a rendered file, rotates it, and reads both versions.
#
#   sh examples/quickstart/run.sh
#
# It works in a folder of its own, which it removes. PORT chooses the port (default 2025),
# SECRETAGENT a built binary (default: it builds one).
set -eu
repo=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
agent=
cleanup() {
  if [ -n "$agent" ]; then
    kill "$agent" 2>/dev/null || true
    wait "$agent" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

if [ -z "${SECRETAGENT:-}" ]; then
  SECRETAGENT=$work/secretagent
  (cd "$repo" && go build -o "$SECRETAGENT" .)
fi
PORT=${PORT:-2025}

# What the agent writes lies in the folder var beside its configuration.
sed "s/127\.0\.0\.1:2025/127.0.0.1:$PORT/" "$repo/agent.example.yaml" >"$work/agent.yaml"
cd "$work"

"$SECRETAGENT" run --config agent.yaml 2>agent.log &
agent=$!

# Ready means: the declared secrets are there and every template is rendered.
if ! "$SECRETAGENT" status --ready --wait 60s --config agent.yaml >/dev/null; then
  echo "the agent did not become ready:" >&2
  cat agent.log >&2
  exit 1
fi

lookup() { curl -fsS -H "X-KMS-Token: $(cat var/run/token)" "http://127.0.0.1:$PORT/v1/$1"; }

echo "== the secret over HTTP"
lookup demo/db
echo "== the rendered file"
ls -l var/rendered/app.env
cat var/rendered/app.env

echo "== a new version"
"$SECRETAGENT" secret put demo/db --config agent.yaml --version-id v2 --data-file - <<'DATA'
{"username":"app","password":"second"}
DATA
echo "== the secret, current and previous"
lookup demo/db
lookup 'demo/db?versionStage=ACSPrevious'

tries=0
until grep -q second var/rendered/app.env; do
  tries=$((tries + 1))
  if [ "$tries" -gt 1200 ]; then
    echo "the rendered file did not change" >&2
    exit 1
  fi
  sleep 0.05
done
echo "== the rendered file"
cat var/rendered/app.env
